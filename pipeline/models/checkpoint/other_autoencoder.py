"""Load the autoencoder that replaces a checkpoint's own: a component's folder, or one safetensors file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.autoencoder import AutoencoderKL, VQModel
from pipeline.models.autoencoder_tiny import AutoencoderTiny
from pipeline.models.checkpoint.components import (
    CLASSES,
    NETWORK_CLASSES,
    build_network,
    class_in_config,
    fill_network,
    load_network,
)
from pipeline.models.checkpoint.identify import describe
from pipeline.models.checkpoint.single_file import AUTOENCODERS, read_header
from pipeline.models.checkpoint.single_file_names import autoencoder_name
from pipeline.models.checkpoint.tensor_names import Target, TensorNames
from pipeline.models.checkpoint.weights import refuse_pickle

Autoencoder = AutoencoderKL | AutoencoderTiny | VQModel

_KNOWN: Final = (*CLASSES["vae"], "VQModel")
_IGNORED: Final = ("loss.", "discriminator.", "model_ema.")
"""Prefixes of tensors of an autoencoder's training."""
_PARTS: Final = ("encoder.", "decoder.")


class OwnAutoencoder(NamedTuple):
    """The config of the autoencoder that a checkpoint comes with."""

    class_name: str
    config: Mapping[str, Any]
    source: str
    """The config's file, for errors."""


def load_other_autoencoder(path: Path, own: OwnAutoencoder | None, *, half: bool, device: str) -> Autoencoder:
    """Load an autoencoder for a checkpoint, in float32 on the CPU; CheckpointError if it does not fit.

    A file says nothing of its network or of the scale of its latents: they are those of the checkpoint's `own`
    autoencoder, or TAESD's defaults. On "meta", only headers are read."""
    if path.is_dir():
        class_name = class_in_config(path)
        if class_name is None or class_name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise CheckpointError(f"{path}/config.json: its class is {class_name}; the supported ones are {known}")
        autoencoder = load_network(path, class_name, half=half, device=device)
    else:
        autoencoder = _load_file(path, own, device)
    assert isinstance(autoencoder, Autoencoder)
    if own is not None:
        _check_latents(path, autoencoder, own)
    return autoencoder


def _load_file(path: Path, own: OwnAutoencoder | None, device: str) -> nn.Module:
    refuse_pickle(path)
    names, _ = read_header(path)
    prefix = next((each for each in AUTOENCODERS if any(name.startswith(each) for name in names)), "")
    parts = tuple(prefix + part for part in _PARTS)
    if not any(name.startswith(parts) for name in names):
        raise CheckpointError(f"{path}: holds no autoencoder; it is {describe(str(path), names)}")
    is_tiny = any(name.startswith(f"{prefix}encoder.layers.") for name in names)
    class_name, config, source = "AutoencoderTiny", {}, str(path)
    if own is not None and (own.class_name == "AutoencoderTiny" or not is_tiny):
        class_name, config, source = own
    if is_tiny != (class_name == "AutoencoderTiny"):
        needed = "and the checkpoint has none" if own is None else f"and the checkpoint's own is a {class_name}"
        raise CheckpointError(f"{path}: a file has no config, {needed}; give a folder with config.json")
    module = build_network(class_name, config, source, device=device)
    levels = len(module.config.block_out_channels) if isinstance(module, AutoencoderKL) else 0
    kind = NETWORK_CLASSES[class_name]
    by_stored = {prefix + autoencoder_name(name, levels): name for name in module.state_dict()}
    file_names = _FileNames(renames=kind.names.renames, prefix=prefix, by_stored=by_stored)
    return fill_network(module, path, kind.stem, file_names, half=False, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class _FileNames(TensorNames):
    """The mapping from a single file's tensor names, of which those of other networks are left out."""

    prefix: str
    by_stored: Mapping[str, str]
    """The network's names by those of single files; a file may also have the network's own."""

    def targets(self, stored: str) -> Sequence[Target]:
        name = stored.removeprefix(self.prefix)
        if not stored.startswith(self.prefix) or name.startswith(_IGNORED):
            return ()
        return (Target(self.by_stored[stored]),) if stored in self.by_stored else TensorNames.targets(self, name)


def _check_latents(path: Path, autoencoder: Autoencoder, own: OwnAutoencoder) -> None:
    own_network = build_network(own.class_name, own.config, own.source)
    assert isinstance(own_network, Autoencoder)
    given, expected = autoencoder.config, own_network.config
    if (given.latent_channels, given.downsample_factor) != (expected.latent_channels, expected.downsample_factor):
        raise CheckpointError(
            f"{path}: its latents have {given.latent_channels} channels at 1/{given.downsample_factor} of the image's "
            f"size; the checkpoint's own have {expected.latent_channels} at 1/{expected.downsample_factor}"
        )
