"""Folders of SDXL's family: the components that are read, and what is refused before an actor starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.layout import names_in_use
from pipeline.models.checkpoint.weights import read_json
from tests.family_checkpoints import SIZE_WIDTH, Family, small_checkpoint


def changed(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(read_json(path) | changes))


@pytest.mark.parametrize(
    ("family", "encoders", "numbers", "zeros"),
    [("sdxl", 2, 6, True), ("ssd-1b", 2, 6, True), ("sdxl-refiner", 1, 5, False), ("small-sd", 1, 0, False)],
)
def test_a_family_loads_with_its_encoders_and_numbers(
    tmp_path: Path, family: Family, encoders: int, numbers: int, zeros: bool
) -> None:
    stack = load_stack(small_checkpoint(tmp_path / family, family), device="meta")
    assert stack.text is not None
    assert (len(stack.text.encoders), stack.size_numbers, stack.text.zeros_for_none) == (encoders, numbers, zeros)


def test_diffusers_defaults_hold_where_the_index_has_no_plain_values(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "sdxl", "sdxl")
    index = read_json(folder / "model_index.json")
    del index["force_zeros_for_empty_prompt"]
    (folder / "model_index.json").write_text(json.dumps(index))
    stack = load_stack(folder, device="meta")
    assert stack.text is not None and stack.text.zeros_for_none


def test_a_component_that_is_listed_as_null_is_not_read(tmp_path: Path) -> None:
    """The refiner has no first text encoder, even where a folder of that name lies beside it."""
    folder = small_checkpoint(tmp_path / "refiner", "sdxl-refiner")
    digest = load_stack(folder).weights_sha256
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"broken")
    assert load_stack(folder).weights_sha256 == digest
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    used = names_in_use(names, lambda name: read_json(folder / name), half=False)
    assert not any(name.startswith(("text_encoder/", "tokenizer/")) for name in used)
    assert {"text_encoder_2/model.safetensors", "tokenizer_2/vocab.json"} <= used


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"text_encoder_2": [None, None]}, "lists no text_encoder_2; this kind of checkpoint"),
        ("model_index.json", {"tokenizer": [None, None]}, "lists no tokenizer; this kind of checkpoint"),
        ("model_index.json", {"requires_aesthetics_score": True}, "with requires_aesthetics_score in model_index.json"),
        ("model_index.json", {"requires_aesthetics_score": 1}, "requires_aesthetics_score is 1; must be true or false"),
        ("model_index.json", {"force_zeros_for_empty_prompt": None}, "force_zeros_for_empty_prompt is None; must be"),
        ("unet/config.json", {"addition_time_embed_dim": SIZE_WIDTH * 2}, "projection_class_embeddings_input_dim is"),
        ("unet/config.json", {"addition_time_embed_dim": None}, "which needs addition_time_embed_dim"),
        ("text_encoder_2/config.json", {"projection_dim": 16}, "makes it (16, 48)"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = small_checkpoint(tmp_path / "sdxl", "sdxl")
    changed(folder, file, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_stack(folder, device="meta")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_encoder_of_another_pooled_width_is_refused(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "sdxl", "sdxl")
    changed(folder, "text_encoder_2/config.json", projection_dim=16)
    path = folder / "text_encoder_2" / "model.safetensors"
    save_file(load_file(path) | {"text_projection.weight": torch.zeros(16, 48)}, path)
    with pytest.raises(CheckpointError, match="the pooled text and 6 size numbers are 64 wide"):
        load_stack(folder, device="meta")
