"""The changes that a LoRA file makes to the modules of a network, by kind.

Linear layers changed by a product of two small matrices (Hu et al. 2021) can differ from lane to lane of a call. All
other kinds are added to the weights: convolutions, LoCon, LoHa and LoKr (Yeh et al. 2023), full differences, changes
of norms, and DoRA (Liu et al. 2024), whose change depends on the weight itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_NORM: Final = torch.finfo(torch.float32).tiny

Tensors = Mapping[str, Tensor]
"""The tensors of a module's change by their roles (`lora_keys.tensor_role`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LowRank:
    """A change of a linear layer: `scale * up @ down` is added to its weight."""

    down: Tensor  # (r, in)
    up: Tensor  # (out, r)
    scale: float
    bias: Tensor | None = None  # (out,), which `scale` times is added to the output


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightChange:
    """Any other change of a module: it depends on nothing but the module's weights, and is added to them."""

    tensors: Tensors
    scale: float

    def deltas(self, module: nn.Module, weights: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
        """Return what is added to a module's `weights` (weight, and bias if it has one), in float32.

        ValueError if a shape does not fit or the module has no bias to change."""
        tensors = {role: values.to(weights["weight"].device, torch.float32) for role, values in self.tensors.items()}
        deltas: dict[str, Tensor] = {}
        if (product := _weight_delta(tensors, module)) is not None:
            weight = weights["weight"].float()
            delta = _fitted(strength * self.scale * product, weight)
            is_dora = "dora_scale" in tensors or "magnitude" in tensors
            deltas["weight"] = _decomposed(weight + delta, tensors) - weight if is_dora else delta
        biases = [scale * tensors[role] for role, scale in self._bias_scales if role in tensors]
        if biases:
            bias = weights.get("bias")
            if bias is None or bias.shape != biases[0].shape:
                raise ValueError("it changes a bias that the layer does not have in this size")
            deltas["bias"] = strength * torch.stack(biases).sum(0)
        return deltas

    @property
    def _bias_scales(self) -> tuple[tuple[str, float], ...]:
        return ("up_bias", self.scale), ("diff_b", 1.0), ("b_norm", 1.0)


Change = LowRank | WeightChange


def module_change(tensors: Tensors, module: nn.Module, alpha: float | None) -> Change:
    """Return the change of a module, with the scale `alpha` / rank, or 1 without `alpha`.

    ValueError if the tensors are not those of one kind, or their shapes do not fit the module."""
    _check_roles(tensors)
    change = WeightChange(tensors=tensors, scale=_scale(tensors, alpha))
    low_rank = _as_low_rank(change, module)
    weights = {name: torch.empty(values.shape, device="meta") for name, values in module.named_parameters()}
    if "weight" not in weights:
        raise ValueError("it has no weight to change")
    if low_rank is not None and low_rank.bias is not None:
        weights.setdefault("bias", torch.empty(weights["weight"].shape[:1], device="meta"))
    meta = WeightChange(tensors={role: values.to("meta") for role, values in tensors.items()}, scale=1.0)
    try:
        meta.deltas(module, weights, 1.0)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the shapes of its tensors do not fit together ({str(error).splitlines()[0]})") from None
    return change if low_rank is None else low_rank


def _as_low_rank(change: WeightChange, module: nn.Module) -> LowRank | None:
    """Return the change as a low-rank product of a linear layer; None if it is not one."""
    tensors = change.tensors
    if not {"down", "up"} <= set(tensors) <= {"down", "up", "up_bias"} or not is_linear(module):
        return None
    matrices = {role: tensors[role].flatten(1) for role in ("down", "up")}
    return LowRank(**matrices, scale=change.scale, bias=tensors.get("up_bias"))


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies each token or position by a matrix: a linear layer or a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
    return isinstance(module, nn.Linear)


_REQUIRED: Final = {
    "down": ("up",),
    "mid": ("up", "down"),
    "up_bias": ("up", "down"),
    "up": ("down",),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a"), ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    "hada_w2_b": ("hada_w2_a",),
    "hada_t1": ("hada_t2", "hada_w1_a"),
    "hada_t2": ("hada_t1",),
    **{f"lokr_w{n}_{side}": (f"lokr_w{n}_{other}",) for n in (1, 2) for side, other in ("ab", "ba")},
    "lokr_t2": ("lokr_w2_a", "lokr_w2_b"),
}
"""The roles that a tensor of a role needs beside it."""

_KINDS: Final = (("down", "up", "mid", "up_bias"), ("hada_",), ("lokr_",), ("diff", "diff_b"), ("w_norm", "b_norm"))
"""The roles of each kind, by their beginnings; a module's change is of one kind."""


def _check_roles(tensors: Tensors) -> None:
    for role in tensors:
        if missing := [each for each in _REQUIRED.get(role, ()) if each not in tensors]:
            raise ValueError(f"it has {role} without {missing[0]}")
    kinds = {kind for kind in _KINDS for role in tensors if role.startswith(kind)}
    lokr = {role[:7] for role in tensors if role.startswith("lokr_w")}
    if len(lokr) == 1:
        raise ValueError("it has one of the two factors of LoKr")
    if len(kinds) != 1:
        raise ValueError(f"its tensors are not those of one kind: {', '.join(sorted(tensors)) or 'alpha alone'}")


def _scale(tensors: Tensors, alpha: float | None) -> float:
    """Return alpha / rank: 1 without alpha, and where nothing is a product, as LyCORIS writes it."""
    ranked = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    rank = next((tensors[role].shape[0] for role in ranked if role in tensors), None)
    return 1.0 if alpha is None or rank is None else alpha / rank


def _weight_delta(tensors: Tensors, module: nn.Module) -> Tensor | None:
    """Return the change of a module's weight before its scale; None if only the bias changes."""
    for role, compute in _DELTAS.items():
        if role in tensors:
            return compute(tensors, tuple(getattr(module, "kernel_size", ())))
    return None


def _low_rank(tensors: Tensors, kernel: tuple[int, ...]) -> Tensor:
    """Sum up[o, r] down[r, i, :, :]; with `mid`, Tucker's form of it."""
    up, down = tensors["up"].flatten(1), tensors["down"]
    if (mid := tensors.get("mid")) is not None:
        return torch.einsum("rs...,or,si->oi...", mid, up, down.flatten(1))
    return (up @ down.flatten(1)).unflatten(1, down.shape[1:])


def _hadamard(tensors: Tensors, kernel: tuple[int, ...]) -> Tensor:
    """Return the elementwise product of two low-rank products (Hyeon-Woo et al. 2022, eq. 3)."""
    parts: list[Tensor] = []
    for n in (1, 2):
        first, second = tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"]
        core = tensors.get(f"hada_t{n}")
        parts.append(first @ second if core is None else torch.einsum("rs...,ro,si->oi...", core, first, second))
    return parts[0] * parts[1]


def _kronecker(tensors: Tensors, kernel: tuple[int, ...]) -> Tensor:
    """Return the Kronecker product of two matrices, each of which may be a low-rank product."""
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        factors = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        second = torch.einsum("rs...,ro,si->oi...", tensors["lokr_t2"], *factors).contiguous()
    else:
        second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    if kernel and second.dim() == 2:
        second = second.reshape(second.shape[0], -1, *kernel)
    return torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - first.dim())), second)


_DELTAS: Final[Mapping[str, Callable[[Tensors, tuple[int, ...]], Tensor]]] = {
    "up": _low_rank,
    "hada_w1_a": _hadamard,
    "lokr_w1": _kronecker,
    "lokr_w1_a": _kronecker,
    "diff": lambda tensors, kernel: tensors["diff"],
    "w_norm": lambda tensors, kernel: tensors["w_norm"],
}
"""The computation of a weight's change, by a role that only its kind has."""


def _fitted(delta: Tensor, weight: Tensor) -> Tensor:
    """Return a change in the shape of the weight: 1x1 kernels are matrices; missing input channels get no change.

    ValueError if the shapes differ otherwise."""
    if delta.numel() == weight.numel() and delta.shape[0] == weight.shape[0]:
        return delta.reshape(weight.shape)
    same_kernel = delta.dim() == 4 and weight.dim() == 4 and delta.shape[2:] == weight.shape[2:] != (1, 1)
    if same_kernel and delta.shape[0] == weight.shape[0] and delta.shape[1] == 4 < weight.shape[1]:
        return F.pad(delta, (0, 0, 0, 0, 0, weight.shape[1] - 4))  # conv_in of inpainting: the latents come first
    raise ValueError(f"its change is {tuple(delta.shape)}; the checkpoint's is {tuple(weight.shape)}")


def _decomposed(weight: Tensor, tensors: Tensors) -> Tensor:
    """Return the weight with the norm of each output or input channel set to a magnitude (Liu et al. 2024, eq. 5).

    PEFT's magnitude is of output channels; LyCORIS's has the shape (out, 1, ...) or (1, in, ...). ValueError if it
    fits neither."""
    magnitude = tensors["magnitude"] if "magnitude" in tensors else tensors["dora_scale"]
    axis = 0 if "magnitude" in tensors or magnitude.shape[0] == weight.shape[0] else 1
    if magnitude.numel() != weight.shape[axis]:
        raise ValueError(f"its magnitude is {tuple(magnitude.shape)}; the weight is {tuple(weight.shape)}")
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.dim())]
    norm = weight.norm(dim=others, keepdim=True).clamp_min(_LEAST_NORM)
    return weight * (magnitude.reshape(shape) / norm)
