"""Prompts with weights, long prompts and textual inversions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.textual_inversion import add_textual_inversion
from pipeline.models.prompt_syntax import Segment, parse_prompt
from pipeline.models.prompts import PromptEncoder
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("plain text", [[("plain text", 1.0)]]),
        ("an (important) word", [[("an ", 1.0), ("important", 1.1), (" word", 1.0)]]),
        ("(a:1.3) [b]", [[("a", 1.3), (" ", 1.0), ("b", 1 / 1.1)]]),
        ("(a (b:0.5))", [[("a ", 1.1), ("b", 0.55)]]),
        ("((a))", [[("a", 1.21)]]),
        (r"\(a\) \[b\]", [[("(a) [b]", 1.0)]]),
        ("(never closed", [[("never closed", 1.1)]]),
        ("never opened) at 10:30)", [[("never opened) at 10:30)", 1.0)]]),
        ("a BREAK b (c BREAK d)", [[("a", 1.0)], [("b ", 1.0), ("c", 1.1)], [("d", 1.1)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("", [[("", 1.0)]]),
    ],
)
def test_weights_are_read_as_in_a1111(prompt: str, parts: list[list[tuple[str, float]]]) -> None:
    actual = parse_prompt(prompt, "weighted")
    assert [[text for text, _ in part] for part in actual] == [[text for text, _ in part] for part in parts]
    for part, expected in zip(actual, parts, strict=True):
        assert [weight for _, weight in part] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\", exclude_categories=("Cs",))))
def test_text_without_brackets_is_plain(prompt: str) -> None:
    if "BREAK" not in prompt:
        assert parse_prompt(prompt, "weighted") == parse_prompt(prompt, "plain") == [[Segment(prompt)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("prompts") / "sd15")


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("prompts") / "sdxl", "sdxl")


def text_of(folder: Path) -> PromptEncoder:
    text = load_stack(folder).text
    assert text is not None
    return text


def test_weights_change_the_states_of_their_tokens_and_keep_the_mean(folder: Path) -> None:
    text = text_of(folder)
    plain = text.encode("a red circle").states
    weighted = text.encode("a (red:1.5) circle", syntax="weighted").states
    ratios = (weighted / plain).mean(1)
    assert ratios[2] == pytest.approx(1.5 * ratios[1].item(), rel=1e-4)
    assert weighted.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)
    assert torch.equal(text.encode("a red circle", syntax="weighted").states, plain)
    assert not torch.equal(text.encode("a (red:1.5) circle").states, weighted), "brackets are text in plain prompts"


def test_break_starts_a_new_window(folder: Path) -> None:
    text = text_of(folder)
    window = text.encoders[0].window
    joined = text.encode("a red circle BREAK a blue square", syntax="weighted").states
    assert text.windows("a red circle BREAK a blue square", "weighted") == 2
    assert torch.equal(joined[:window], text.encode("a red circle").states)
    assert torch.equal(joined[window:], text.encode("a blue square").states)


@pytest.mark.parametrize("count", [1, 3])
def test_a_textual_inversion_is_diffusers(folder: Path, tmp_path: Path, count: int) -> None:
    vectors = torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    save_file({"<mark>": vectors}, tmp_path / "mark.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_textual_inversion(str(tmp_path / "mark.safetensors"), token="<mark>")
    prompt = "a red <mark> circle, <mark>"
    expected, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, do_classifier_free_guidance=False)
    text = text_of(folder)
    add_textual_inversion(text.encoders, "<mark>", tmp_path / "mark.safetensors")
    assert torch.allclose(text.encode(prompt).states, expected[0], atol=1e-5)
    assert not torch.allclose(text_of(folder).encode(prompt).states, expected[0], atol=1e-2)


def test_a_textual_inversion_for_sdxl_is_diffusers(xl_folder: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    pair = {"clip_l": torch.randn(2, 32, generator=draw), "clip_g": torch.randn(2, 48, generator=draw)}
    save_file(pair, tmp_path / "pair.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    for key, name in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(pipeline, f"text_encoder{name}"), getattr(pipeline, f"tokenizer{name}")
        pipeline.load_textual_inversion(pair[key], token="mark-x", text_encoder=encoder, tokenizer=tokenizer)
    expected, *_ = pipeline.encode_prompt("a mark-x circle", do_classifier_free_guidance=False)
    text = text_of(xl_folder)
    add_textual_inversion(text.encoders, "mark-x", tmp_path / "pair.safetensors")
    actual = text.encode("a mark-x circle")
    assert torch.allclose(actual.states, expected[0], atol=1e-5)
    assert actual.pooled is not None
    ends = text.encode("a red circle").pooled
    assert ends is not None
    assert not torch.allclose(actual.pooled, ends)


@pytest.mark.parametrize(
    ("tensors", "word", "message"),
    [
        ({"x": np.zeros((1, 1024))}, "<x>", "1024 values, those of Stable Diffusion 2; the text encoder takes 32"),
        (
            {"clip_l": np.zeros((1, 32)), "clip_g": np.zeros((1, 48))},
            "<x>",
            "which SDXL takes; this checkpoint has one",
        ),
        ({"a": np.zeros((1, 32)), "b": np.zeros((1, 32))}, "<x>", "is not a textual inversion"),
        ({"x": np.zeros((1, 32))}, "circle", "'circle' is a word of the text encoder's vocabulary"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, np.ndarray], word: str, message: str
) -> None:
    save_file({name: torch.from_numpy(values).float() for name, values in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        add_textual_inversion(text_of(folder).encoders, word, tmp_path / "x.safetensors")


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a pickle"):
        add_textual_inversion(text_of(folder).encoders, "<x>", tmp_path / "x.pt")
