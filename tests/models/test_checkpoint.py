"""Loading checkpoint folders: every supported layout, and a one-line error for each that cannot be loaded."""

import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig
from safetensors.torch import load_file, save_file

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.errors import CheckpointError
from pipeline.models.autoencoder import AutoencoderConfig, VQConfig
from pipeline.models.bert import BertConfig
from pipeline.models.checkpoint.components import load_text_encoder
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import Config
from pipeline.models.prompts import PromptEncoder
from pipeline.models.unet_config import UnconditionalUNetConfig, UNetConfig
from tests.checkpoints import tiny_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_checkpoint(folder, family="sd15")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def test_text_embeddings_equal_those_of_diffusers(saved: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(saved)
    prompts = ["a red circle", "", "A Photograph, of 3 cats!"]
    encoder = load_text_encoder(saved / "text_encoder", saved / "tokenizer")
    for prompt, ours in zip(prompts, encoder.encode(prompts), strict=True):
        expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        assert (ours - expected[0]).abs().max() <= 1e-4 * expected.abs().max()


def test_a_long_prompt_is_encoded_completely_in_several_windows(saved: Path) -> None:
    encoder = load_text_encoder(saved / "text_encoder", saved / "tokenizer")
    prompts = PromptEncoder((encoder,), is_xl=False, zeros_for_none=False)
    words = ["red"] * encoder.window * 2 + ["circle"]
    long, other = (prompts.encode(" ".join([*words[:-1], last])).states for last in ("circle", "square"))
    assert len(long) == prompts.windows(" ".join(words)) * encoder.window > encoder.window
    assert torch.equal(long[: encoder.window], other[: encoder.window])
    assert not torch.equal(long[-encoder.window :], other[-encoder.window :])
    assert len(prompts.encode("red", windows=3).states) == 3 * encoder.window


def test_text_tensors_load_with_and_without_the_old_prefix(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    before = load_text_encoder(folder / "text_encoder", folder / "tokenizer").encode(["a red circle"])[0]
    bare = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    for prefix in ("", "text_model."):
        positions = {f"{prefix}embeddings.position_ids": torch.arange(8)[None]}
        save_file({prefix + name: tensor for name, tensor in bare.items()} | positions, path)
        assert torch.equal(
            load_text_encoder(folder / "text_encoder", folder / "tokenizer").encode(["a red circle"])[0], before
        )


def test_shards_and_the_fp16_variant_load(folder: Path) -> None:
    whole = load_stack(folder).unet.state_dict()
    tensors = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    sharded = load_stack(folder).unet.state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)

    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    both = load_stack(folder).unet.state_dict()
    assert all(torch.equal(whole[name], both[name]) for name in whole)
    for path in [*(folder / "unet").glob("[ab].safetensors"), folder / "unet" / f"{WEIGHTS}.index.json"]:
        path.unlink()
    variant = load_stack(folder).unet.state_dict()
    assert all(torch.equal(half[name].float(), variant[name]) for name in half)


def refused(folder: Path, device: str = "cpu") -> str:
    with pytest.raises(CheckpointError) as caught:
        load_stack(folder, device=device)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin: is a pickle" in refused(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.non_ema.safetensors", "ema.safetensors", "a.safetensors"])
def test_other_weights_in_the_folder_of_a_component_are_ignored(folder: Path, name: str) -> None:
    whole, tensors = load_stack(folder), load_file(folder / "unet" / WEIGHTS)
    save_file({key: torch.zeros_like(tensor) for key, tensor in tensors.items()}, folder / "unet" / name)
    for dtype in (torch.float32, torch.float16):
        state = load_stack(folder, dtype=dtype).unet.state_dict()
        assert all(torch.equal(state[key], tensor.to(dtype)) for key, tensor in whole.unet.state_dict().items())
    assert load_stack(folder).weights_sha256 == whole.weights_sha256
    (folder / "unet" / WEIGHTS).unlink()
    assert refused(folder) == f"{folder / 'unet'}: holds no {WEIGHTS}; found only {name}"


def test_shards_outside_of_the_component_are_refused(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    index = {"weight_map": {"conv_in.weight": "../vae/" + WEIGHTS}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "names '../vae/diffusion_pytorch_model.safetensors', which is not a file beside it" in refused(folder)


def test_files_that_are_not_used_are_neither_required_nor_hashed(folder: Path) -> None:
    before = load_stack(folder).weights_sha256
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "checkpoint-500" / "unet").mkdir(parents=True)
    (folder / "checkpoint-500" / "unet" / "config.json").write_text("{}")
    (folder / "training_args.json").write_text("{}")
    assert index["safety_checker"] == [None, None]
    assert load_stack(folder).weights_sha256 == before


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / "unet" / WEIGHTS)
    assert "tensor conv_in.bias missing" in refused(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(tensors, folder / "vae" / WEIGHTS)
    message = refused(folder)
    assert "tensor decoder.conv_in.bias is (3,)" in message and str(folder / "vae" / WEIGHTS) in message


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file({**tensors, "extra.weight": torch.zeros(1)}, folder / "unet" / WEIGHTS)
    assert "tensor extra.weight is unknown" in refused(folder)


def test_loading_on_meta_raises_the_same_errors_and_reads_no_weights(folder: Path) -> None:
    stack = load_stack(folder, device="meta")
    assert all(tensor.is_meta for tensor in stack.unet.state_dict().values())
    assert stack.native_size == load_stack(folder).native_size
    for component, name, change in (
        ("unet", "conv_in.bias", None),
        ("vae", "decoder.conv_in.bias", torch.zeros(3)),
        ("unet", "extra", torch.zeros(1)),
        ("text_encoder", "final_layer_norm.bias", torch.zeros(3)),
    ):
        path = next((folder / component).glob("*.safetensors"))
        saved = path.read_bytes()
        tensors = load_file(path)
        key = next((key for key in tensors if key.endswith(name)), name)
        tensors.pop(key, None)
        save_file(tensors if change is None else {**tensors, key: change}, path)
        messages = [refused(folder, device) for device in ("meta", "cpu")]
        assert messages[0] == messages[1]
        assert name in messages[0]
        path.write_bytes(saved[: len(saved) // 2])
        assert "is not a readable safetensors file" in refused(folder, "meta")
        path.write_bytes(saved)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_an_unknown_class_is_named(folder: Path, component: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = ["diffusers", "Mystery"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert f"{component} has the unknown class Mystery" in refused(folder)


def test_an_unsupported_config_option_is_named(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "addition_embed_type": "text_time"}))
    assert "addition_embed_type is 'text_time'" in refused(folder)
    path.write_text(json.dumps({**config, "down_block_types": ["AttnDownBlock2D"] * 4}))
    assert "unknown class AttnDownBlock2D" in refused(folder)


def change_config(folder: Path, component: str, **changes: object) -> None:
    path = folder / component / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_class_names_may_be_only_in_the_configs_of_components(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        index[name][1] = None
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_stack(folder).schedule_config["_class_name"] == "PNDMScheduler"
    change_config(folder, "vae", _class_name=None)
    assert "vae has the unknown class None" in refused(folder)


def test_model_index_overrides_the_class_in_a_components_config(folder: Path) -> None:
    change_config(folder, "unet", _class_name="UNet2DModel")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "HeunDiscreteScheduler"]}))
    stack = load_stack(folder)
    assert stack.schedule_config["_class_name"] == "HeunDiscreteScheduler"
    assert NoiseScheduleConfig.from_dict(stack.schedule_config).sampler == "heun"


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("unet", {"sample_size": "8"}, "sample_size is '8'; must be int | tuple[int, int] | None"),
        ("unet", {"sample_size": [8, 8, 8]}, "sample_size is [8, 8, 8]; must be"),
        ("unet", {"cross_attention_dim": [32, 32]}, "cross_attention_dim has 2 entries, block_out_channels 4"),
        ("unet", {"cross_attention_dim": None}, "cross_attention_dim is None; must be int"),
        ("unet", {"cross_attention_dim": 48}, "makes it (32, 48)"),
        ("unet", {"attention_head_dim": 3}, "cannot be divided among 3 heads"),
        ("unet", {"norm_num_groups": None}, "norm_num_groups is None; must be int"),
        ("unet", {"norm_num_groups": 7}, "num_channels (32) must be divisible by num_groups (7)"),
        ("unet", {"time_embedding_act_fn": "silu"}, "time_embedding_act_fn is 'silu'; only None is supported"),
        ("unet", {"timestep_post_act": "silu"}, "timestep_post_act is 'silu'; only None is supported"),
        ("unet", {"out_channels": 8}, "conv_out.bias is (4,)"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1; only None or 0 is supported"),
        ("vae", {"latents_mean": [0.0]}, "latents_mean and latents_std need each other"),
        ("vae", {"scaling_factor": "a"}, "scaling_factor is 'a'; must be float"),
        ("text_encoder", {"hidden_size": "wide"}, "a CLIPTextModel cannot be built of it"),
        ("text_encoder", {"num_attention_heads": 5}, "a CLIPTextModel cannot be built of it"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(
    folder: Path, component: str, changes: dict[str, object], message: str
) -> None:
    change_config(folder, component, **changes)
    assert message in refused(folder, "meta")


def test_options_may_be_lists_with_a_value_per_side_or_level(folder: Path) -> None:
    plain = load_stack(folder).unet.state_dict()
    change_config(folder, "unet", sample_size=[8, 16], cross_attention_dim=[32] * 4, layers_per_block=[1] * 4)
    stack = load_stack(folder)
    assert stack.native_size == (128, 64)
    assert stack.unet.state_dict().keys() == plain.keys()


def test_options_without_effect_are_accepted(folder: Path) -> None:
    change_config(folder, "unet", dropout=0.1, addition_time_embed_dim=256, key_of_another_version=1)
    load_stack(folder)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (UNetConfig, UNet2DConditionModel),
        (UnconditionalUNetConfig, UNet2DModel),
        (AutoencoderConfig, AutoencoderKL),
        (VQConfig, VQModel),
        (BertConfig, LDMBertConfig),
    ],
)
def test_every_option_of_diffusers_is_honored_refused_or_without_effect(config: type[Config], reference: type) -> None:
    options = set(inspect.signature(reference.__init__).parameters) - {"self", "kwargs"}
    known = {field.name for field in fields(config)} | config.CONSTANTS.keys() | config.WITHOUT_EFFECT
    assert options - known == set()


@pytest.mark.parametrize("prompt", ["a red circle", ""])
def test_padding_is_masked_if_the_text_encoders_config_says_so(folder: Path, prompt: str) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    change_config(folder, "text_encoder", use_attention_mask=True)
    expected, _ = StableDiffusionPipeline.from_pretrained(folder).encode_prompt(prompt, "cpu", 1, False)
    ours = load_text_encoder(folder / "text_encoder", folder / "tokenizer").encode([prompt])[0]
    assert (ours - expected[0]).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "tokenizer/vocab.json"])
@pytest.mark.parametrize("content", [None, b"", b"{]", b"\x00" * 64])
def test_a_missing_or_broken_file_is_named(folder: Path, file: str, content: bytes | None) -> None:
    for path in (folder / "tokenizer").glob("tokenizer.json"):
        path.unlink()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    assert str(folder / Path(file).parts[0]) in refused(folder)


def test_the_digest_changes_with_a_weight(folder: Path) -> None:
    first = load_stack(folder).weights_sha256
    assert load_stack(folder).weights_sha256 == first
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["decoder.conv_in.bias"] += 1
    save_file(tensors, folder / "vae" / WEIGHTS)
    assert load_stack(folder).weights_sha256 != first
