"""The LoRAs of a run on the networks of a checkpoint: rows with different ones share the calls of a network.

Each lane of a call adds its own low-rank terms to the outputs of linear layers (Hu et al. 2021, eq. 3). Other changes
are merged into the weights, for calls whose lanes all have the same.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, cast

import torch
from torch import Tensor, nn

from pipeline.adapters import LANE_INPUTS, AdapterWeight
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.lora import Lora
from pipeline.models.checkpoint.lora_kinds import Change, LowRank, WeightChange

INDICES, WEIGHTS = LANE_INPUTS

Merged = tuple[tuple[int, float], ...]
"""The adapters that are merged into the weights of a network, by index, and their weights."""


class LaneAdapters:
    """The low-rank adapters of each lane in the call that runs; no lane has one between calls."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.terms: list[tuple[Tensor, Tensor]] = []
        """Of each of the M terms of a lane: the indices (lanes,) of stacked matrices, and the weights (lanes, 1, 1)."""

    def set(self, indices: Tensor, weights: Tensor, count: int) -> None:
        """Set the adapters (lanes, M) of each lane; index -1, for none, is that of the zeros at the end."""
        columns = zip(indices.remainder(count + 1).unbind(1), weights.unbind(1), strict=True)
        self.terms = [(index.contiguous(), weight[:, None, None]) for index, weight in columns]

    def clear(self) -> None:
        self.terms = []


class LowRankTerm:
    """Forward hook of a linear layer or a 1x1 convolution that adds the low-rank terms of each lane to its output."""

    def __init__(self, changes: Sequence[LowRank | None], module: nn.Module, lanes: LaneAdapters) -> None:
        """`changes` are those of the module by adapter, None where an adapter has none."""
        weight = module.get_parameter("weight")
        out, into = weight.shape[:2]
        size, room = len(changes) + 1, {"device": weight.device, "dtype": weight.dtype}
        self._down = torch.zeros(size, lanes.rank, into, **room)
        self._up = torch.zeros(size, lanes.rank, out, **room)
        for index, change in enumerate(changes):
            if change is not None:
                rank = change.down.shape[0]
                self._down[index, :rank] = change.down.to(**room)
                self._up[index, :rank] = (change.scale * change.up.float()).T.to(**room)
        self._bias: Tensor | None = None  # (K + 1, out)
        for index, change in enumerate(changes):
            if change is not None and change.bias is not None:
                self._bias = torch.zeros(size, out, **room) if self._bias is None else self._bias
                self._bias[index] = (change.scale * change.bias.float()).to(**room)
        self._lanes = lanes

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Terms are added one after the other, so one without effect leaves the bits of its lane as they are."""
        if not self._lanes.terms:
            return output
        features = arguments[0]
        if isinstance(module, nn.Conv2d):
            tokens, total = features.flatten(2).transpose(1, 2), output.flatten(2).transpose(1, 2).contiguous()
        else:
            tokens, total = (each if each.dim() == 3 else each[:, None] for each in (features, output))
        for indices, weights in self._lanes.terms:
            down, up = self._down.index_select(0, indices), self._up.index_select(0, indices)
            total.baddbmm_(torch.bmm(tokens, down.transpose(1, 2)) * weights, up)
            if self._bias is not None:
                total += weights * self._bias.index_select(0, indices)[:, None]
        return total.transpose(1, 2).unflatten(2, output.shape[2:]) if isinstance(module, nn.Conv2d) else output


class NetworkAdapters:
    """The changes of all adapters of a run to one network.

    An adapter whose changes are all low-rank terms of linear layers is used lane by lane, any other one is merged."""

    def __init__(self, network: nn.Module, adapters: Sequence[Mapping[str, Change]]) -> None:
        self._network, self._adapters = network, adapters
        self.merged_indices = frozenset(
            index
            for index, changes in enumerate(adapters)
            if any(isinstance(change, WeightChange) for change in changes.values())
        )
        in_lanes = [{} if index in self.merged_indices else changes for index, changes in enumerate(adapters)]
        ranks = [each.down.shape[0] for changes in in_lanes for each in changes.values() if isinstance(each, LowRank)]
        self.lanes = LaneAdapters(max(ranks, default=0))
        self.lane_indices = frozenset(index for index, changes in enumerate(in_lanes) if changes)
        for name in dict.fromkeys(name for changes in in_lanes for name in changes):
            module = network.get_submodule(name)
            module.register_forward_hook(LowRankTerm([_low_rank(each, name) for each in in_lanes], module, self.lanes))
        self._merged: Merged | None = ()
        self._changed: set[str] = set()
        """The modules whose weights differ from the originals."""
        self._check_biases()
        self._originals = self._copies()

    def use(self, indices: Tensor | None, weights: Tensor | None) -> None:
        """Give each lane of the next call its adapters (lanes, M) and their weights (lanes, M)."""
        if indices is None or weights is None or not self.lane_indices:
            self.lanes.clear()
        else:
            dtype = next(self._network.parameters()).dtype
            self.lanes.set(indices, weights.to(dtype), len(self._adapters))

    def batch_of_one(self, values: Tensor | None) -> Tensor | None:
        """Return values (M,) as (1, M) on the network's device."""
        return None if values is None else values[None].to(next(self._network.parameters()).device)

    def merge(self, merged: Merged) -> None:
        """Merge adapters into the weights, and no others: what was merged before leaves no trace."""
        if merged == self._merged:
            return
        wanted = {name for index, _ in merged for name in self._adapters[index]}
        self._merged = None  # until all are written: an error on the way leaves some of both
        for name in (*self._changed, *(wanted - self._changed)):
            self._changed.add(name)
            module = self._network.get_submodule(name)
            originals = self._originals[name]
            totals = {parameter: values.float() for parameter, values in originals.items()}
            for index, weight in merged:
                if (change := self._adapters[index].get(name)) is not None:
                    for parameter, delta in _deltas(change, module, originals, weight).items():
                        totals[parameter] = totals[parameter] + delta
            for parameter, values in totals.items():
                module.get_parameter(parameter).copy_(values)
        self._changed, self._merged = wanted, merged

    def _check_biases(self) -> None:
        """CheckpointError if an adapter that is merged adds a bias to a layer that has none."""
        for name, change in (each for index in self.merged_indices for each in self._adapters[index].items()):
            is_biased = isinstance(change, LowRank) and change.bias is not None
            if is_biased and self._network.get_submodule(name).bias is None:
                raise CheckpointError(f"a LoRA with changes of convolutions adds a bias to {name}, which has none")

    def _copies(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of the weights of all modules that a merged adapter changes."""
        names = {name for index in self.merged_indices for name in self._adapters[index]}
        modules = {name: self._network.get_submodule(name) for name in names}
        return {
            name: {parameter: values.detach().clone() for parameter, values in module.named_parameters(recurse=False)}
            for name, module in modules.items()
        }


class Adapters:
    """The LoRAs of a run on the networks of a checkpoint, by their names."""

    def __init__(self, networks: Mapping[str, nn.Module], loras: Mapping[str, Lora]) -> None:
        """`networks` are those for which the LoRAs were read."""
        self.names = tuple(loras)
        self.sha256 = {name: lora.sha256 for name, lora in loras.items()}
        self._networks = {
            name: NetworkAdapters(network, [lora.changes.get(name, {}) for lora in loras.values()])
            for name, network in networks.items()
        }

    def inputs(self, used: Sequence[AdapterWeight]) -> dict[str, Tensor]:
        """Return the U-Net's inputs INDICES (M,) and WEIGHTS (M,) of a row; none if the run has no low-rank adapter.

        M is the number of the run's LoRAs; behind those that the row uses come the index -1 and the weight 0."""
        if "unet" not in self._networks or not self._networks["unet"].lane_indices:
            return {}
        return _lane_inputs(self._selected("unet", used, merged=False), len(self.names))

    def merged(self, used: Sequence[AdapterWeight]) -> Merged:
        """Return what a row needs to be merged into the U-Net."""
        return self._selected("unet", used, merged=True)

    def changing_text(self, used: Sequence[AdapterWeight]) -> tuple[AdapterWeight, ...]:
        """Return the LoRAs of a row that change what a prompt is encoded to."""
        changing = {
            self.names[index]
            for network in self._networks
            if network != "unet"
            for merged in (False, True)
            for index, _ in self._selected(network, used, merged=merged)
        }
        return tuple(lora for lora in used if lora.name in changing)

    @contextmanager
    def on_unet(self, inputs: Mapping[str, Tensor], merged: Hashable) -> Iterator[dict[str, Tensor]]:
        """Use the adapters of each lane and `merged` in a `with` block; yield the inputs that are the U-Net's own."""
        others = {name: values for name, values in inputs.items() if name not in (INDICES, WEIGHTS)}
        if "unet" not in self._networks:
            yield others
            return
        unet = self._networks["unet"]
        unet.merge(cast("Merged", merged or ()))
        unet.use(inputs.get(INDICES), inputs.get(WEIGHTS))
        try:
            yield others
        finally:
            unet.use(None, None)

    @contextmanager
    def on_text(self, used: Sequence[AdapterWeight]) -> Iterator[None]:
        """Call the text encoders, in batches of one, with the adapters of a row in a `with` block."""
        encoders = [(name, adapters) for name, adapters in self._networks.items() if name != "unet"]
        for name, adapters in encoders:
            adapters.merge(self._selected(name, used, merged=True))
            selected = self._selected(name, used, merged=False)
            inputs = _lane_inputs(selected, len(selected))
            adapters.use(*(adapters.batch_of_one(inputs.get(key)) for key in (INDICES, WEIGHTS)))
        try:
            yield
        finally:
            for _, adapters in encoders:
                adapters.use(None, None)

    def _selected(self, network: str, used: Sequence[AdapterWeight], *, merged: bool) -> Merged:
        """Return the adapters of a row that change a network in one of the two ways, in the order of the run."""
        adapters = self._networks.get(network)
        if adapters is None:
            return ()
        indices = adapters.merged_indices if merged else adapters.lane_indices
        pairs = ((self.names.index(name), weight) for name, weight in used if weight)
        return tuple(sorted(pair for pair in pairs if pair[0] in indices))


NO_ADAPTERS: Final = Adapters({}, {})
"""Of a run without LoRAs."""


def _lane_inputs(selected: Merged, room: int) -> dict[str, Tensor]:
    padded = [*selected, *[(-1, 0.0)] * (room - len(selected))]
    indices, weights = [index for index, _ in padded], [weight for _, weight in padded]
    return {INDICES: torch.tensor(indices, dtype=torch.long), WEIGHTS: torch.tensor(weights)}


def _low_rank(changes: Mapping[str, Change], name: str) -> LowRank | None:
    change = changes.get(name)
    return change if isinstance(change, LowRank) else None


def _deltas(change: Change, module: nn.Module, originals: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    if isinstance(change, LowRank):
        tensors = {"down": change.down, "up": change.up}
        tensors |= {} if change.bias is None else {"up_bias": change.bias}
        change = WeightChange(tensors=tensors, scale=change.scale)
    return change.deltas(module, originals, weight)
