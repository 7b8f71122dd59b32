"""Tensor names of LoRA files: the module that a tensor changes, and its part in the change.

Files write a module's path in many ways: with dots or underscores, under diffusers' names or those of single files.
A flattened path cannot be split again, so the names of the network's modules are flattened instead, and looked up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"

_ROLES: Final = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora.alpha": "alpha",
    "lora_linear_layer.alpha": "alpha",
    "alpha": "alpha",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "dora_scale",
    **{
        name: name
        for name in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("diff", "diff_b", "w_norm", "b_norm"),
        )
    },
}
"""The endings of tensor names, and the part that a tensor with the ending has in the change of its module."""
_ENDING: Final = re.compile(
    r"(?P<path>.+?)(?:\.|_(?=lora\.))(?P<ending>"
    + "|".join(sorted(map(re.escape, _ROLES), key=len, reverse=True))
    + r")$"
)

_PREFIXES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("lora_unet_", (UNET,)),
    ("lora_te1_", (TEXT,)),
    ("lora_te2_", (TEXT_2,)),
    ("lora_te_", (TEXT,)),
    ("lycoris_te1_", (TEXT,)),
    ("lycoris_te2_", (TEXT_2,)),
    ("lycoris_te_", (TEXT,)),
    ("lycoris_unet_", (UNET,)),
    ("lycoris_", (UNET, TEXT, TEXT_2)),
    ("base_model.model.unet.", (UNET,)),
    ("base_model.model.text_encoder_2.", (TEXT_2,)),
    ("base_model.model.text_encoder.", (TEXT,)),
    ("base_model.model.", (UNET, TEXT, TEXT_2)),
    ("unet.base_model.model.", (UNET,)),
    ("text_encoder.base_model.model.", (TEXT,)),
    ("text_encoder_2.base_model.model.", (TEXT_2,)),
    ("unet.", (UNET,)),
    ("text_encoder_2.", (TEXT_2,)),
    ("text_encoder.", (TEXT,)),
    ("diffusion_model.", (UNET,)),
    ("", (UNET,)),
)
"""Prefixes of module paths, and the networks that a path with the prefix may be of."""

REFUSED: Final = (
    (re.compile(r"\.on_input$"), "IA3"),
    (re.compile(r"\.[ab][12](\.weight)?$"), "GLoRA"),
    (re.compile(r"\.oft_(blocks|diag|R)|\.boft_"), "OFT"),
    (re.compile(r"^lllite_"), "ControlNet-LLLite"),
    (re.compile(r"^lora_controlnet$"), "Control-LoRA"),
)
"""Kinds of adapters that are not supported, by a tensor that only they have."""


class TensorRole(NamedTuple):
    """A tensor's part in the change of a module."""

    path: str
    """The path of the module as the file writes it."""
    role: str


def refused_kind(keys: Iterable[str]) -> str | None:
    """Return the name of the unsupported kind of adapter that a file holds, or None."""
    for key in keys:
        for pattern, name in REFUSED:
            if pattern.search(key):
                return name
    return None


def tensor_role(key: str) -> TensorRole | None:
    """Return the module's path and the tensor's part in its change; None for an unknown ending."""
    match = _ENDING.match(key)
    return None if match is None else TensorRole(match["path"], _ROLES[match["ending"]])


class ModuleNames:
    """Finds the modules of some networks by the paths that LoRA files write."""

    def __init__(self, modules: Mapping[str, Iterable[str]], single_file: Mapping[str, str]) -> None:
        """`modules` are the names of each network's modules; `single_file` has the U-Net's names in single files."""
        self._tables = {network: _table(network, names) for network, names in modules.items()}
        self._single_file = {_flat(stored): name for stored, name in single_file.items()}

    def find(self, path: str) -> tuple[str, str, bool] | None:
        """Return the network and the name of a module, and whether the path is a single file's; None if unknown.

        A path that two networks have, and that does not say which it means, is unknown."""
        for prefix, networks in _PREFIXES:
            if not path.startswith(prefix):
                continue
            flat = _flat(path.removeprefix(prefix).replace(".processor.", "."))
            found = [(network, name) for network in networks if (name := self._tables.get(network, {}).get(flat))]
            if found:
                return (*found[0], False) if len(found) == 1 else None
            if UNET in networks and UNET in self._tables and (name := self._single_file.get(flat)):
                return UNET, name, True
        return None


def network_of(path: str) -> str | None:
    """Return the network that a module's path is of by its prefix; None if it may be of several."""
    networks = next(networks for prefix, networks in _PREFIXES if path.startswith(prefix))
    return networks[0] if len(networks) == 1 else None


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _table(network: str, names: Iterable[str]) -> dict[str, str]:
    """Return a network's modules by each flattened name under which files have them."""
    return {_flat(alias): name for name in names for alias in _aliases(network, name)}


_OLD_TEXT: Final = (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj"))
"""Names of a text encoder's projections in diffusers before and after 0.17."""


def _aliases(network: str, name: str) -> Iterator[str]:
    if network == UNET:
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        return
    plain = name.removeprefix("text_model.")
    for path in (plain, f"text_model.{plain}"):  # transformers 5 has the prefix in some classes, files in all
        yield path
        for old, new in _OLD_TEXT:
            if path.endswith(f".{new}"):
                yield path.removesuffix(new) + old
