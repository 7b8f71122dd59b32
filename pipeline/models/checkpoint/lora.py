"""Read LoRA files: kohya's, diffusers', PEFT's and LyCORIS's forms, for the networks of a checkpoint."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.identify import describe
from pipeline.models.checkpoint.lora_base import check_base
from pipeline.models.checkpoint.lora_file import LoraFile, lora_digest, open_lora
from pipeline.models.checkpoint.lora_keys import UNET, ModuleNames, refused_kind, tensor_role
from pipeline.models.checkpoint.lora_kinds import Change, module_change
from pipeline.models.checkpoint.single_file_names import single_file_names
from pipeline.models.unet import UNet

_MODULES: Final = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lora:
    """A LoRA for the networks of a checkpoint."""

    sha256: str
    """Of its files; empty if only headers were read."""
    changes: Mapping[str, Mapping[str, Change]]
    """The changes by network (unet, text_encoder, text_encoder_2) and module."""


def read_lora(path: Path, networks: Mapping[str, nn.Module], *, headers_only: bool = False) -> Lora:
    """Read a LoRA file or PEFT's folder for networks by name: unet, text_encoder and text_encoder_2.

    Each tensor of the file belongs to a module of the networks and has a shape that fits it, else CheckpointError says
    how many do not, or that the file is made for another base. With `headers_only`, tensors are on the device "meta".
    """
    file = open_lora(path, headers_only=headers_only)
    if kind := refused_kind(file.tensors):
        raise CheckpointError(f"{path}: is an adapter of the kind {kind}, which is not supported; give a LoRA")
    names = ModuleNames(_module_names(networks), _single_file_names(networks))
    modules, unknown = _by_module(file.tensors, names)
    if unknown:
        check_base(path, file, networks)
        if not any(map(tensor_role, file.tensors)):
            raise CheckpointError(f"{path}: is not a LoRA; it is {describe(str(path), file.tensors)}")
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(file.tensors)} tensors belong to no module of the checkpoint, such as "
            f"{unknown[0]}"
        )
    changes = _changes(path, file, networks, modules)
    return Lora(sha256="" if headers_only else lora_digest(path), changes=changes)


def _module_names(networks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    return {
        network: [name for name, module in model.named_modules() if isinstance(module, _MODULES)]
        for network, model in networks.items()
    }


def _single_file_names(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    unet = networks.get(UNET)
    return single_file_names(unet.config, dict(unet.named_modules())) if isinstance(unet, UNet) else {}


_Module = tuple[str, str]
"""A network and the name of one of its modules."""


def _by_module(keys: Iterable[str], names: ModuleNames) -> tuple[dict[_Module, dict[str, str]], list[str]]:
    """Return the keys of each module by role, and the keys that belong to none.

    Of a module under two names, those of diffusers count, as in diffusers."""
    found: dict[_Module, dict[bool, dict[str, str]]] = defaultdict(lambda: {True: {}, False: {}})
    unknown: list[str] = []
    for key in keys:
        role = tensor_role(key)
        target = None if role is None else names.find(role.path)
        if role is None or target is None:
            unknown.append(key)
            continue
        network, module, single_file = target
        roles = found[network, module][single_file]
        if role.role in roles:
            unknown.append(key)
        roles[role.role] = key
    return {module: forms[False] or forms[True] for module, forms in found.items()}, unknown


def _changes(
    path: Path,
    file: LoraFile,
    networks: Mapping[str, nn.Module],
    modules: Mapping[_Module, Mapping[str, str]],
) -> dict[str, dict[str, Change]]:
    alphas = _alphas(file, modules)
    changes: dict[str, dict[str, Change]] = {}
    failed: list[str] = []
    for (network, name), roles in modules.items():
        tensors = {role: file.tensors[key] for role, key in roles.items() if role != "alpha"}
        module = networks[network].get_submodule(name)
        try:
            change = module_change(tensors, module, alphas.get((network, name)))
        except ValueError as error:
            failed.append(f"{next(iter(roles.values()))}: {error}")
        else:
            changes.setdefault(network, {})[name] = change
    if failed:
        check_base(path, file, networks)
        raise CheckpointError(f"{path}: does not fit {len(failed)} of {len(modules)} modules, such as {failed[0]}")
    return changes


def _alphas(file: LoraFile, modules: Mapping[_Module, Mapping[str, str]]) -> dict[_Module, float]:
    """Return the alpha of each module that has one, as diffusers takes it.

    It is the file's tensor, or that of a config in the file or beside it. Where only some modules of a network have a
    tensor, the others take the commonest of the network."""
    alphas: dict[_Module, float] = {}
    given: dict[str, list[float]] = defaultdict(list)
    for (network, name), roles in modules.items():
        if "alpha" in roles:
            alphas[network, name] = float(file.tensors[roles["alpha"]])
            given[network].append(alphas[network, name])
    for network, name in modules:
        if (network, name) in alphas:
            continue
        if given[network]:
            alphas[network, name] = Counter(given[network]).most_common(1)[0][0]
        elif (config := file.config(network)) is not None:
            alphas[network, name] = _alpha_of_config(config, name)
    return alphas


def _alpha_of_config(config: Mapping[str, Any], module: str) -> float:
    """Return PEFT's alpha of a module, times sqrt(rank) for rank-stabilized LoRA (Kalajdzievski 2023)."""
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    return float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that the end of a module's name matches, as PEFT does.

    A text encoder's names may have a prefix that its network has in other versions of transformers only."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"text_model.{module.removeprefix('text_model.')}"):
            return value
    return default
