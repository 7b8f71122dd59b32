"""A lane group: rows of one shape that share calls of a fixed batch shape."""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.adapters import LANE_INPUTS
from pipeline.diffusion.guidance import apply_guidance, rescale_guidance
from pipeline.diffusion.request import DenoisingRequest, Result
from pipeline.diffusion.step import (
    C_IN,
    COEFFICIENTS,
    GUIDANCE_SCALE,
    IMAGE_GUIDANCE_SCALE,
    TIMESTEP,
    State,
    coefficients_of,
    per_row,
    sampler_step,
)


class NetworkInput(NamedTuple):
    """The input of one call of the network, one entry per lane."""

    latents: Tensor  # (lanes, C + C2, h, w)
    timesteps: Tensor  # (lanes,), float32
    inputs: Mapping[str, Tensor]  # (lanes, ...) each: the conditions by name
    merged: Hashable
    """What is merged into the network's weights for this call."""

    def parts(self, size: int) -> Iterator["NetworkInput"]:
        """Yield the input in parts of at most `size` lanes."""
        for start in range(0, len(self.latents), size):
            lanes = slice(start, start + size)
            inputs = {name: values[lanes] for name, values in self.inputs.items()}
            yield NetworkInput(self.latents[lanes], self.timesteps[lanes], inputs, self.merged)


class Assignment(NamedTuple):
    """An evaluation that a lane does: of one side of the guidance of the row in a slot."""

    slot: int
    side: int


class LaneGroup:
    """The rows of one group. A row stays in its slot; its evaluations take whichever lanes are free at each call.

    A guided step needs two evaluations and is made once both are there, from one call or from two. Older rows get
    their lanes first. Everything between two calls is elementwise, so a row's bits do not depend on other rows.
    """

    def __init__(self, like: DenoisingRequest, lanes: int, device: torch.device, dtype: torch.dtype) -> None:
        self.lanes, self.device = lanes, device
        self.waiting: deque[DenoisingRequest] = deque()
        self.lanes_per_part = lanes  # fewer once a call of all lanes did not fit into memory
        self.calls_skipped = 0  # calls of other groups since the last call of this one in which a row finished
        self._shape, self._sides, self._merged = tuple(like.latents.shape), like.guidance.sides, like.merged
        self._running: dict[int, _RunningRow] = {}  # by slot, the oldest first
        self._free_slots = list(range(lanes))[::-1]
        self._assignments: list[Assignment] = []
        self._rows_changed = True
        channels, *size = self._shape
        conditioning = like.conditions[0]
        extra = 0 if conditioning.extra_channels is None else conditioning.extra_channels.shape[0]
        # by slot
        self._coefficients = torch.zeros(lanes, COEFFICIENTS)
        self._state = torch.zeros(lanes, 2 + like.table.history, *self._shape, device=device)  # x, anchor, predictions
        # by slot and side
        entries = self._sides * lanes
        self._extra = torch.zeros(entries, extra, *size, device=device, dtype=dtype)
        self._conditions = {name: _room(entries, values, device, dtype) for name, values in conditioning.inputs.items()}
        self._outputs = torch.zeros(entries, *self._shape, device=device)
        # by lane
        self._latents = torch.zeros(lanes, channels + extra, *size, device=device, dtype=dtype)
        self._inputs = {name: _room(lanes, values, device, dtype) for name, values in conditioning.inputs.items()}
        self._slots = self._entries = torch.zeros(lanes, device=device, dtype=torch.long)

    @property
    def idle(self) -> bool:
        return not self._running and not self.waiting

    @property
    def load(self) -> int:
        """The number of lanes that the next call would fill."""
        count = sum(len(row.missing_sides) for row in self._running.values())
        for request in self.waiting:
            if count >= self.lanes:
                break
            count += len(_sides(request, request.guidance.scale_at(0, len(request.table))))
        return min(count, self.lanes)

    def request_keys(self) -> list[Hashable]:
        """Return the keys of the requests that run or wait."""
        return [*(row.request.key for row in self._running.values()), *(request.key for request in self.waiting)]

    def network_input(self, side: int) -> NetworkInput | None:
        """Return an input of the network like this group's with at most `side` latents per side; None if all are."""
        if max(self._shape[1:]) <= side:
            return None
        latents, timesteps = torch.zeros_like(self._latents[..., :side, :side]), torch.zeros_like(self._slots).float()
        return NetworkInput(latents, timesteps, self._inputs, self._merged)

    def next_input(self) -> tuple[NetworkInput, int]:
        """Return the network's next input and the number of lanes that hold a row; empty lanes repeat the first."""
        assignments = [Assignment(slot, side) for slot, row in self._running.items() for side in row.missing_sides]
        while len(assignments) < self.lanes and self.waiting:
            slot = self._start(self.waiting.popleft())
            assignments += [Assignment(slot, side) for side in self._running[slot].missing_sides]
        self._assign(assignments[: self.lanes])
        coefficients = self._coefficients.to(self.device, non_blocking=True).index_select(0, self._slots)
        x = self._state[:, 0].index_select(0, self._slots)
        self._latents[:, : self._shape[0]] = x * per_row(coefficients[:, C_IN])
        network_input = NetworkInput(self._latents, coefficients[:, TIMESTEP], self._inputs_in_use(), self._merged)
        return network_input, len(self._assignments)

    def _inputs_in_use(self) -> dict[str, Tensor]:
        """Return the inputs of the lanes; of low-rank adapters, only as many terms as a lane uses (see LANE_INPUTS)."""
        terms = max(self._running[assignment.slot].adapters for assignment in self._assignments)
        return {name: values[:, :terms] if name in LANE_INPUTS else values for name, values in self._inputs.items()}

    def accept(self, output: Tensor) -> list[Result]:
        """Take the network's output for the last input, step the rows that have all they need, return finished rows."""
        filled = len(self._assignments)
        self._outputs.index_copy_(0, self._entries[:filled], output[:filled].float())
        for assignment in self._assignments:
            self._running[assignment.slot].missing_sides.remove(assignment.side)
        ready = [slot for slot, row in self._running.items() if not row.missing_sides]
        if not ready:
            return []
        self._step(ready)
        finished = [slot for slot in ready if not self._running[slot].advance()]
        for slot in ready:
            if slot not in finished:
                self._coefficients[slot] = self._running[slot].coefficients
        return self._finish(finished) if finished else []

    def _start(self, request: DenoisingRequest) -> int:
        slot = self._free_slots.pop()
        self._running[slot] = row = _RunningRow(request)
        self._coefficients[slot] = row.coefficients
        self._extend_history(request.table.history)
        self._state[slot] = 0
        self._state[slot, 0] = request.latents.to(self.device, non_blocking=True)
        self._outputs[self._sides * slot : self._sides * (slot + 1)] = 0
        for entry, conditioning in enumerate(request.conditions, self._sides * slot):
            for name, values in conditioning.inputs.items():
                target = self._conditions[name]
                target[entry] = values.to(self.device, target.dtype, non_blocking=True)
            if conditioning.extra_channels is not None:
                extra = conditioning.extra_channels
                self._extra[entry] = extra.to(self.device, self._extra.dtype, non_blocking=True)
        self._rows_changed = True
        return slot

    def _extend_history(self, history: int) -> None:
        """Make room for the number of older predictions that a row's sampler reads."""
        missing = history - (self._state.shape[1] - 2)
        if missing > 0:
            room = torch.zeros(self.lanes, missing, *self._shape, device=self.device)
            self._state = torch.cat([self._state, room], dim=1)

    def _assign(self, assignments: list[Assignment]) -> None:
        """Set the lanes' assignments; gather inputs that stay the same between steps only where they changed."""
        if assignments == self._assignments and not self._rows_changed:
            return
        self._assignments, self._rows_changed = assignments, False
        padded = assignments + [assignments[0]] * (self.lanes - len(assignments))
        indices = torch.tensor([[item.slot, self._sides * item.slot + item.side] for item in padded])
        self._slots, self._entries = indices.T.to(self.device, non_blocking=True)
        for name, values in self._conditions.items():
            torch.index_select(values, 0, self._entries, out=self._inputs[name])
        self._latents[:, self._shape[0] :] = self._extra.index_select(0, self._entries)

    def _step(self, ready: list[int]) -> None:
        """Apply the sampler step of each row in the slots `ready` to its guided output."""
        rows = [self._running[slot] for slot in ready]
        slots = torch.tensor(ready).to(self.device, non_blocking=True)
        coefficients = self._coefficients[ready].to(self.device, non_blocking=True)
        sides = [self._outputs.index_select(0, self._sides * slots + side) for side in range(self._sides)]
        output = apply_guidance(sides, coefficients[:, GUIDANCE_SCALE], coefficients[:, IMAGE_GUIDANCE_SCALE])
        for index, row in enumerate(rows):
            if row.request.guidance.rescale and row.guidance_scale != 1:
                output[index] = rescale_guidance(output[index], sides[0][index], row.request.guidance.rescale)
        x, anchor, *history = self._state.index_select(0, slots).unbind(1)
        thresholding = [row.request.table.thresholding for row in rows]
        state = sampler_step(coefficients, State(x, anchor, tuple(history)), output, self._noise(rows), thresholding)
        assert state.anchor is not None
        stacked = torch.stack([state.x, state.anchor, *state.history[: len(history)]], 1)
        for index, row in enumerate(rows):
            if row.request.known is not None:
                stacked[index, 0] = row.restore_known(stacked[index, 0])
        self._state.index_copy_(0, slots, stacked)

    def _noise(self, rows: list["_RunningRow"]) -> Tensor:
        """Return fresh noise for the rows whose step needs it, each from its own generator; zeros for the others."""
        noise = torch.zeros(len(rows), *self._shape)
        for index, row in enumerate(rows):
            if row.draws_noise[row.index]:
                noise[index] = torch.randn((1, *self._shape), generator=row.request.generator)[0]
        return noise.to(self.device, non_blocking=True)

    def _finish(self, slots: list[int]) -> list[Result]:
        latents = self._state[slots, 0]
        is_finite = latents.isfinite().flatten(1).all(1).tolist()
        results: list[Result] = []
        for slot, row_latents, finite in zip(slots, latents.unbind(0), is_finite, strict=True):
            key = self._running.pop(slot).request.key
            error = ValueError("the network's output is not finite; the latents are lost")
            results.append((key, row_latents if finite else error))
            self._free_slots.append(slot)
        self.calls_skipped = 0
        return results


class _RunningRow:
    """A request in a slot: the index of its step, and the evaluations that the step still lacks."""

    def __init__(self, request: DenoisingRequest) -> None:
        self.request = request
        self.index = 0
        self.adapters = _adapters(request)
        self.draws_noise = request.table.draws_noise
        self._scales = request.guidance.scales(len(request.table))
        self._coefficients = coefficients_of(request.table, request.guidance)
        self.missing_sides = _sides(request, self.guidance_scale)

    @property
    def guidance_scale(self) -> float:
        return self._scales[self.index]

    @property
    def coefficients(self) -> Tensor:
        return self._coefficients[self.index]

    def advance(self) -> bool:
        """Go to the next step; False if the row is finished."""
        self.index += 1
        if self.index == len(self._scales):
            return False
        self.missing_sides = _sides(self.request, self.guidance_scale)
        return True

    def restore_known(self, latents: Tensor) -> Tensor:
        """Return the latents after this step with the known part at its noise level (Lugmayr et al. 2022, eq. 8)."""
        known, table = self.request.known, self.request.table
        assert known is not None
        is_last = self.index + 1 == len(table)
        signal, deviation = (1.0, 0.0) if is_last else table.levels[self.index + 1].tolist()
        at_level = (signal * known.latents + deviation * known.noise).to(latents.device, non_blocking=True)
        mask = known.mask.to(latents.device, non_blocking=True)
        return mask * latents + (1 - mask) * at_level


def _adapters(request: DenoisingRequest) -> int:
    """Return how many low-rank adapters a row uses; the rest of its room has the index -1."""
    indices = request.conditions[0].inputs.get(LANE_INPUTS[0])
    return 0 if indices is None else int((indices >= 0).sum())


def _sides(request: DenoisingRequest, guidance_scale: float) -> list[int]:
    return list(range(1 if guidance_scale == 1 else request.guidance.sides))


def _room(count: int, like: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros (count, ...) for tensors like one; `dtype` is that of floating-point values."""
    dtype = dtype if like.is_floating_point() else like.dtype
    return torch.zeros(count, *like.shape, device=device, dtype=dtype)
