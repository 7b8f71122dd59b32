"""LoRA files: kinds against their formulas, scales, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.adapters import AdapterWeight
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.lora import read_lora
from pipeline.models.checkpoint.lora_kinds import LowRank, WeightChange
from pipeline.models.lora import Adapters
from pipeline.models.stack import Stack
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint
from tests.lora_checkpoints import FORMS, random_factors, save_diffusers, save_kohya, save_old_diffusers, save_peft

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return load_stack(tiny_checkpoint(tmp_path_factory.mktemp("sd15")))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return load_stack(small_checkpoint(tmp_path_factory.mktemp("sdxl"), "sdxl"))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kohya(module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"lora_unet_{module.replace('.', '_')}.{role}": values for role, values in tensors.items()}


def merged_weight(stack: Stack, path: Path, module: str, weight: float, parameter: str = "weight") -> Tensor:
    """The weight of a module with a LoRA merged; afterwards the network is as before."""
    lora = read_lora(path, stack.networks)
    assert isinstance(lora.changes["unet"][module], WeightChange)
    adapters = Adapters(stack.networks, {"style": lora})
    before = stack.unet.state_dict()
    copies = {name: values.clone() for name, values in before.items()}
    with adapters.on_unet({}, adapters.merged([AdapterWeight("style", weight)])):
        merged = stack.unet.get_submodule(module).get_parameter(parameter).clone()
    with adapters.on_unet({}, ()):
        assert all(torch.equal(values, copies[name]) for name, values in before.items())
    return merged


LYCORIS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "locon": (CONV, {"lora_down.weight": draw(3, 32, 3, 3), "lora_up.weight": draw(32, 3, 1, 1)}),
    "tucker": (
        CONV,
        {
            "lora_down.weight": draw(3, 32, 1, 1),
            "lora_up.weight": draw(32, 3, 1, 1),
            "lora_mid.weight": draw(3, 3, 3, 3),
        },
    ),
    "loha": (
        CONV,
        {
            "hada_w1_a": draw(32, 3),
            "hada_w1_b": draw(3, 32 * 9),
            "hada_w2_a": draw(32, 3) + 1,
            "hada_w2_b": draw(3, 288) + 1,
        },
    ),
    "loha-tucker": (
        CONV,
        {
            "hada_t1": draw(3, 3, 3, 3),
            "hada_w1_a": draw(3, 32),
            "hada_w1_b": draw(3, 32) + 1,
            "hada_t2": draw(3, 3, 3, 3) + 1,
            "hada_w2_a": draw(3, 32) - 1,
            "hada_w2_b": draw(3, 32) * 2,
        },
    ),
    "lokr-linear": (LINEAR, {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(8, 3), "lokr_w2_b": draw(3, 8)}),
    "lokr-full": (LINEAR, {"lokr_w1": draw(4, 4), "lokr_w2": draw(8, 8)}),
    "lokr-convolution": (
        CONV,
        {
            "lokr_w1_a": draw(4, 3),
            "lokr_w1_b": draw(3, 4),
            "lokr_w2_a": draw(8, 3),
            "lokr_w2_b": draw(3, 8 * 9),
        },
    ),
    "lokr-tucker": (
        CONV,
        {"lokr_w1": draw(4, 4), "lokr_t2": draw(3, 3, 3, 3), "lokr_w2_a": draw(3, 8), "lokr_w2_b": draw(3, 8)},
    ),
    "full": (CONV, {"diff": draw(32, 32, 3, 3)}),
}


def formula(kind: str, t: dict[str, Tensor], alpha: float) -> Tensor:
    """The change of a weight, element by element as the formats' descriptions give it."""
    if kind == "locon":
        return alpha / 3 * torch.einsum("or,rikl->oikl", t["lora_up.weight"][..., 0, 0], t["lora_down.weight"])
    if kind == "tucker":
        up, down = t["lora_up.weight"][..., 0, 0], t["lora_down.weight"][..., 0, 0]
        return alpha / 3 * torch.einsum("pqkl,op,qi->oikl", t["lora_mid.weight"], up, down)
    if kind == "loha":
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return alpha / 3 * product.reshape(32, 32, 3, 3)
    if kind == "loha-tucker":
        parts = [
            torch.einsum("ijkl,jr,ip->prkl", t[f"hada_t{n}"], t[f"hada_w{n}_b"], t[f"hada_w{n}_a"]) for n in (1, 2)
        ]
        return alpha / 3 * parts[0] * parts[1]
    if kind == "lokr-linear":
        return alpha / 3 * torch.kron(t["lokr_w1"], t["lokr_w2_a"] @ t["lokr_w2_b"])
    if kind == "lokr-full":
        return torch.kron(t["lokr_w1"], t["lokr_w2"])
    if kind == "lokr-convolution":
        first, second = t["lokr_w1_a"] @ t["lokr_w1_b"], (t["lokr_w2_a"] @ t["lokr_w2_b"]).reshape(8, 8, 3, 3)
        return alpha / 3 * torch.kron(first[:, :, None, None], second)
    if kind == "lokr-tucker":
        second = torch.einsum("ijkl,ip,jr->prkl", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"]).contiguous()
        return alpha / 3 * torch.kron(t["lokr_w1"][:, :, None, None], second)
    return t["diff"]


@pytest.mark.parametrize("kind", LYCORIS)
def test_each_lycoris_kind_changes_the_weight_as_its_formula_says(stack: Stack, kind: str, tmp_path: Path) -> None:
    module, tensors = LYCORIS[kind]
    save_file(kohya(module, {**tensors, "alpha": torch.tensor(2.0)}), tmp_path / "style.safetensors")
    merged = merged_weight(stack, tmp_path / "style.safetensors", module, 0.7)
    weight = stack.unet.get_submodule(module).get_parameter("weight")
    torch.testing.assert_close(merged, weight + 0.7 * formula(kind, tensors, 2.0), atol=1e-4, rtol=1e-5)


def test_differences_of_norms_and_biases_are_added(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    tensors = kohya(NORM, {"w_norm": draw(32), "b_norm": draw(32) + 1}) | kohya(CONV, {"diff_b": draw(32)})
    save_file(tensors, file)
    unet = stack.unet
    for module, parameter, change in (
        (NORM, "weight", draw(32)),
        (NORM, "bias", draw(32) + 1),
        (CONV, "bias", draw(32)),
    ):
        merged = merged_weight(stack, file, module, 0.5, parameter)
        torch.testing.assert_close(merged, unet.get_submodule(module).get_parameter(parameter) + 0.5 * change)


@pytest.mark.parametrize("shape", [(32, 1), (1, 32), (32,)])
def test_dora_sets_the_norm_of_each_output_or_input_channel(stack: Stack, shape: tuple, tmp_path: Path) -> None:
    down, up, magnitude = draw(3, 32), draw(32, 3), draw(*shape).abs()
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    save_file(kohya(LINEAR, tensors), tmp_path / "style.safetensors")
    merged = merged_weight(stack, tmp_path / "style.safetensors", LINEAR, 0.7)
    changed = stack.unet.get_submodule(LINEAR).get_parameter("weight") + 0.7 * up @ down
    by_input = shape == (1, 32)
    norm = changed.norm(dim=0 if by_input else 1, keepdim=True)
    torch.testing.assert_close(merged, changed * magnitude.reshape((1, 32) if by_input else (32, 1)) / norm)


def changes_in_lanes(stack: Stack, path: Path) -> dict[str, Tensor]:
    """The whole change of each module of the U-Net that is a low-rank product."""
    changes = read_lora(path, stack.networks).changes["unet"]
    low_rank = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
    return {name: change.scale * change.up @ change.down for name, change in low_rank.items()}


def test_a_lora_without_alpha_has_scale_1(stack: Stack, tmp_path: Path) -> None:
    save_file(
        kohya(LINEAR, {"lora_down.weight": draw(3, 32), "lora_up.weight": draw(32, 3)}), tmp_path / "a.safetensors"
    )
    [change] = changes_in_lanes(stack, tmp_path / "a.safetensors").values()
    torch.testing.assert_close(change, draw(32, 3) @ draw(3, 32))


def test_modules_without_alpha_have_the_commonest_of_the_others(stack: Stack, tmp_path: Path) -> None:
    factors = random_factors(stack, endings=("to_q",), networks=["unet"])
    names = [name for _, name in factors]
    alphas = dict.fromkeys(names, 3.0) | {names[0]: 1.0, names[1]: None}
    tensors: dict[str, Tensor] = {}
    for (_, name), (down, up, _) in factors.items():
        alpha = alphas[name]
        roles = {"lora_down.weight": down, "lora_up.weight": up}
        tensors |= kohya(name, roles if alpha is None else {**roles, "alpha": torch.tensor(alpha)})
    save_file(tensors, tmp_path / "a.safetensors")
    changes = changes_in_lanes(stack, tmp_path / "a.safetensors")
    for name, expected in ((names[0], 1.0), (names[1], 3.0), (names[2], 3.0)):
        down, up, _ = factors["unet", name]
        torch.testing.assert_close(changes[name], expected / len(down) * up @ down)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_takes_its_scales_from_its_config(stack: Stack, rslora: bool, tmp_path: Path) -> None:
    factors = random_factors(stack, endings=("to_q", "to_v"), networks=["unet"])
    changes = changes_in_lanes(stack, save_peft(tmp_path / "adapter", factors, rslora=rslora))
    assert len(changes) == len(factors)
    for (_, name), (down, up, alpha) in factors.items():
        rank = len(down)
        torch.testing.assert_close(changes[name], alpha / (rank**0.5 if rslora else rank) * up @ down)


@pytest.mark.parametrize("form", FORMS)
def test_headers_alone_are_checked_in_the_same_way(stack: Stack, form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / "style.safetensors", stack, random_factors(stack))
    full, headers = read_lora(path, stack.networks), read_lora(path, stack.networks, headers_only=True)
    assert {name: set(changes) for name, changes in full.changes.items()} == {
        name: set(changes) for name, changes in headers.changes.items()
    }
    change = headers.changes["unet"][LINEAR]
    assert isinstance(change, LowRank)
    assert change.down.is_meta
    assert change.scale == 2.0 / len(change.down) or form in ("diffusers-without-config", "diffusers-old-text")


def test_of_a_module_under_two_names_that_of_diffusers_counts(xl: Stack, tmp_path: Path) -> None:
    factors = random_factors(xl, endings=("attn2.to_k",), networks=["unet"])
    others = random_factors(xl, endings=("attn2.to_k",), networks=["unet"], seed=1)
    one = save_kohya(tmp_path / "one.safetensors", xl, factors)
    two = save_kohya(tmp_path / "two.safetensors", xl, others, single_file=True)
    save_file(load_file(two) | load_file(one), tmp_path / "both.safetensors")
    both, expected = changes_in_lanes(xl, tmp_path / "both.safetensors"), changes_in_lanes(xl, one)
    assert both.keys() == expected.keys()
    assert all(torch.equal(both[name], expected[name]) for name in expected)


def test_a_change_of_four_input_channels_fits_an_inpainting_u_net(tmp_path: Path) -> None:
    stack = load_stack(tiny_checkpoint(tmp_path / "inpainting", "sd15-inpainting"))
    down, up = draw(2, 4, 3, 3), draw(32, 2, 1, 1)
    save_file(kohya("conv_in", {"lora_down.weight": down, "lora_up.weight": up}), tmp_path / "a.safetensors")
    merged = merged_weight(stack, tmp_path / "a.safetensors", "conv_in", 1.0)
    weight = stack.unet.conv_in.weight
    torch.testing.assert_close(merged[:, :4], weight[:, :4] + torch.einsum("or,rikl->oikl", up[..., 0, 0], down))
    assert torch.equal(merged[:, 4:], weight[:, 4:])


PAIR = {"lora_down.weight": draw(3, 32), "lora_up.weight": draw(32, 3)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            kohya("down_blocks.7.nothing", {role: values.clone() for role, values in PAIR.items()})
            | kohya(LINEAR, PAIR),
            r"2 of 4 tensors belong to no module .*nothing",
        ),
        (kohya(LINEAR, {**PAIR, "unknown": draw(3)}), r"1 of 3 tensors belong to no module .*unknown"),
        (kohya(LINEAR, {"lora_down.weight": draw(3, 32)}), r"1 of 1 modules, .*down without up"),
        (kohya(LINEAR, {"alpha": torch.tensor(1.0)}), r"alpha alone"),
        (
            kohya(CONV, {"lora_down.weight": draw(3, 32, 3, 3), "lora_up.weight": draw(16, 3, 1, 1)}),
            r"\(16, 32, 3, 3\)",
        ),
        (kohya(LINEAR, {"diff_b": draw(32)}), "bias that the layer does not have"),
        (kohya(LINEAR, {"weight": draw(32, 32), "on_input": torch.tensor(1)}), "IA3"),
        (kohya(LINEAR, {"a1.weight": draw(32, 3)}), "GLoRA"),
        (kohya(LINEAR, {"oft_blocks": draw(4, 8, 8)}), "OFT"),
        ({"lllite_unet_input_blocks_1_1.down.0.weight": draw(3, 3)}, "ControlNet-LLLite"),
        ({"lora_controlnet": draw(1)}, "Control-LoRA"),
    ],
)
def test_what_has_no_place_is_refused_with_an_example(
    stack: Stack, tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    for headers_only in (False, True):
        with pytest.raises(CheckpointError, match=message) as caught:
            read_lora(tmp_path / "a.safetensors", stack.networks, headers_only=headers_only)
        assert "\n" not in str(caught.value)


def test_a_lora_for_another_base_is_refused_with_both_names(stack: Stack, xl: Stack, tmp_path: Path) -> None:
    of_xl = save_kohya(tmp_path / "xl.safetensors", xl, random_factors(xl))
    with pytest.raises(
        CheckpointError,
        match=re.escape("is a LoRA for SDXL (text of width 80); the checkpoint is a U-Net with text of width 32"),
    ):
        read_lora(of_xl, stack.networks)
    of_sd = save_diffusers(tmp_path / "sd.safetensors", random_factors(stack))
    with pytest.raises(CheckpointError, match=r"LoRA for a U-Net with text of width 32; the checkpoint is SDXL"):
        read_lora(of_sd, xl.networks)
    named = {"ss_base_model_version": "sd_v2"}
    save_file(
        kohya(LINEAR, {"lora_down.weight": draw(3, 48), "lora_up.weight": draw(32, 3)}),
        tmp_path / "v2.safetensors",
        named,
    )
    with pytest.raises(CheckpointError, match=r"LoRA for SD 2.x \(text of width 48\)"):
        read_lora(tmp_path / "v2.safetensors", stack.networks)
    save_file({"transformer.single_blocks.0.attn.to_q.lora_A.weight": draw(3, 32)}, tmp_path / "flux.safetensors")
    with pytest.raises(CheckpointError, match="LoRA for a transformer"):
        read_lora(tmp_path / "flux.safetensors", stack.networks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
    ],
)
def test_an_unsupported_option_of_peft_is_refused(stack: Stack, change: dict, message: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "adapter", random_factors(stack, endings=("to_q",), networks=["unet"]))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        read_lora(folder, stack.networks)


def test_a_wrong_path_says_what_a_lora_is(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "style.pt").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "model_index").mkdir()
    (tmp_path / "model_index" / "model_index.json").write_text("{}")
    for name, message in (
        ("missing.safetensors", "no such file; a LoRA is"),
        ("style.pt", "is a pickle"),
        ("empty", "holds no adapter_model.safetensors"),
        ("broken.safetensors", "not a readable safetensors file"),
        ("model_index", "give it with --model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_lora(tmp_path / name, stack.networks)


def test_another_kind_of_file_is_named_with_its_option(stack: Stack, tmp_path: Path) -> None:
    for key, message in (
        ("model.diffusion_model.input_blocks.0.0.weight", "a checkpoint; give it as --model "),
        ("emb_params", "a textual inversion; give it as --embedding NAME="),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "an autoencoder alone; give it as --vae "),
    ):
        save_file({key: draw(2, 3)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=f"is not a LoRA; it is {message}"):
            read_lora(tmp_path / "a.safetensors", stack.networks)


def test_old_names_of_a_text_encoder_are_found(stack: Stack, tmp_path: Path) -> None:
    key = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora"
    save_file({f"{key}.down.weight": draw(3, 32), f"{key}.up.weight": draw(32, 3)}, tmp_path / "a.safetensors")
    changes = read_lora(tmp_path / "a.safetensors", stack.networks).changes
    assert list(changes["text_encoder"]) == ["encoder.layers.0.self_attn.out_proj"]


def test_a_path_of_two_networks_is_refused(xl: Stack, tmp_path: Path) -> None:
    key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{key}.lora_A.weight": draw(3, 32), f"{key}.lora_B.weight": draw(32, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="2 of 2 tensors belong to no module"):
        read_lora(tmp_path / "a.safetensors", xl.networks)


def test_the_oldest_names_are_those_of_the_u_net(stack: Stack, tmp_path: Path) -> None:
    factors = random_factors(stack, endings=("to_out.0",), networks=["unet"])
    path = save_old_diffusers(tmp_path / "old.safetensors", factors, prefix="")
    assert set(read_lora(path, stack.networks).changes["unet"]) == {name for _, name in factors}
