"""Rows of one shape in a fixed batch: their state, which of their evaluations go into a call, and what comes of it."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pipeline.diffusion.guidance import Guidance, guided, rescaled
from pipeline.diffusion.table import HISTORY, TERMS, SamplerTable
from pipeline.diffusion.tiles import Tiling

Result = tuple[Hashable, Tensor | ValueError]
"""A request's key, and its latents (C, h, w) in float32 on the engine's device, or why there are none."""

PROMPT: Final = 0
NEGATIVE_PROMPT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownLatents:
    """Inpainting with a network that was not trained for it: after each evaluation what is known is put back."""

    latents: Tensor  # (C, h, w), clean
    noise: Tensor  # (C, h, w), the first noise: it takes them to each level
    mask: Tensor  # (1, h, w), 1 where latents are made anew, 0 where they are known


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenoisingRequest:
    """One row's denoising: where it starts, how it goes, and what it is told. A ValueError says what is missing."""

    key: Hashable
    table: SamplerTable
    latents: Tensor  # (C, h, w), float32 on the CPU: the table's start already applied
    generator: torch.Generator
    """The row's own, on the CPU; fresh noise is drawn from it as (1, C, h, w)."""
    prompt_embeds: Tensor  # (T, D)
    negative_prompt_embeds: Tensor | None  # (T, D); None where the row is not guided
    guidance: Guidance
    extra_channels: Tensor | None = None  # (C2, h, w), put behind the latents in the network's input
    class_label: int | None = None
    known: KnownLatents | None = None
    tiling: Tiling | None = None
    """How the latents are cut, where they are larger than the network takes; not with `known`."""

    def __post_init__(self) -> None:
        if self.negative_prompt_embeds is None:
            if any(scale != 1 for scale in self.guidance.scales(len(self.table))):
                raise ValueError(f"row {self.key!r} is guided but has no negative prompt's embeddings")
        elif self.negative_prompt_embeds.shape != self.prompt_embeds.shape:
            shapes = (tuple(self.negative_prompt_embeds.shape), tuple(self.prompt_embeds.shape))
            raise ValueError(
                f"row {self.key!r}: its negative prompt's embeddings are {shapes[0]}, its prompt's {shapes[1]}"
            )

    @property
    def group(self) -> Hashable:
        """Requests of one group can share a call: the same shapes of everything that goes into the network."""
        extra = None if self.extra_channels is None else self.extra_channels.shape[0]
        return (self.latents.shape, self.prompt_embeds.shape, extra, self.class_label is None)


class Call(NamedTuple):
    """The network's input: one entry a lane."""

    latents: Tensor  # (lanes, C + C2, h, w)
    timesteps: Tensor  # (lanes,), float32
    encoder_hidden_states: Tensor  # (lanes, T, D)
    class_labels: Tensor | None  # (lanes,)


class Place(NamedTuple):
    """An evaluation that a row needs: of its prompt or of its negative prompt."""

    slot: int
    side: int

    @property
    def entry(self) -> int:
        return 2 * self.slot + self.side


class LaneBatch:
    """The rows of one group. A row stays in its slot; its evaluations go wherever lanes are free, call by call.

    A row whose guidance acts needs two evaluations a step, and goes on once it has both, be it in one call or in two.
    The older a row is, the sooner it gets its lanes. Between two calls everything is elementwise, so that no row's
    bits depend on another's.
    """

    def __init__(self, like: DenoisingRequest, lanes: int, device: torch.device, dtype: torch.dtype) -> None:
        self.lanes, self.device = lanes, device
        self.waiting: deque[DenoisingRequest] = deque()
        self.waited = 0  # calls of other groups since a row of this one was last done
        self._shape = tuple(like.latents.shape)
        self._running: dict[int, _Run] = {}  # the oldest first
        self._free = list(range(lanes))[::-1]
        self._places: list[Place] = []
        self._moved = True
        channels, *size = self._shape
        extra = 0 if like.extra_channels is None else like.extra_channels.shape[0]
        # by slot
        self._numbers = torch.zeros(lanes, _NUMBERS)
        self._state = torch.zeros(lanes, 2 + HISTORY, *self._shape, device=device)  # x, anchor, kept predictions
        self._extra = torch.zeros(lanes, extra, *size, device=device, dtype=dtype)
        self._labels = None if like.class_label is None else torch.zeros(lanes, device=device, dtype=torch.long)
        # by slot and side
        self._embeds = torch.zeros(2 * lanes, *like.prompt_embeds.shape, device=device, dtype=dtype)
        self._outputs = torch.zeros(2 * lanes, *self._shape, device=device)
        # by lane
        self._latents = torch.zeros(lanes, channels + extra, *size, device=device, dtype=dtype)
        self._states = torch.zeros(lanes, *like.prompt_embeds.shape, device=device, dtype=dtype)
        self._slots = self._entries = torch.zeros(lanes, device=device, dtype=torch.long)

    @property
    def idle(self) -> bool:
        return not self._running and not self.waiting

    @property
    def load(self) -> int:
        """How many lanes the next call would fill."""
        count = sum(len(run.missing) for run in self._running.values())
        for request in self.waiting:
            if count >= self.lanes:
                break
            count += len(_sides(request.guidance.scale_at(0, len(request.table))))
        return min(count, self.lanes)

    def next_call(self) -> tuple[Call, int]:
        """The network's next input, and how many of its lanes are some row's own; the others repeat the first."""
        places = [Place(slot, side) for slot, run in self._running.items() for side in run.missing]
        while len(places) < self.lanes and self.waiting:
            slot = self._start(self.waiting.popleft())
            places += [Place(slot, side) for side in self._running[slot].missing]
        self._assign(places[: self.lanes])
        numbers = self._numbers.to(self.device, non_blocking=True).index_select(0, self._slots)
        x = self._state[:, 0].index_select(0, self._slots)
        self._latents[:, : self._shape[0]] = x * _spread(numbers[:, _INPUT_SCALE])
        labels = None if self._labels is None else self._labels.index_select(0, self._slots)
        return Call(self._latents, numbers[:, _TIMESTEP], self._states, labels), len(self._places)

    def take(self, output: Tensor) -> list[Result]:
        """Give every row what the network made of its lanes; step the rows that have all they need; return the done."""
        filled = len(self._places)
        self._outputs.index_copy_(0, self._entries[:filled], output[:filled].float())
        for place in self._places:
            self._running[place.slot].missing.remove(place.side)
        ready = [slot for slot, run in self._running.items() if not run.missing]
        if not ready:
            return []
        self._step(ready)
        done = [slot for slot in ready if self._running[slot].next_step()]
        for slot in ready:
            if slot not in done:
                self._numbers[slot] = self._running[slot].now
        return self._finish(done) if done else []

    def _start(self, request: DenoisingRequest) -> int:
        slot = self._free.pop()
        self._running[slot] = run = _Run(request)
        self._numbers[slot] = run.now
        self._state[slot] = 0
        self._state[slot, 0] = request.latents.to(self.device, non_blocking=True)
        self._outputs[2 * slot : 2 * slot + 2] = 0
        for side, embeds in ((PROMPT, request.prompt_embeds), (NEGATIVE_PROMPT, request.negative_prompt_embeds)):
            if embeds is not None:
                self._embeds[2 * slot + side] = embeds.to(self.device, self._embeds.dtype, non_blocking=True)
        if request.extra_channels is not None:
            self._extra[slot] = request.extra_channels.to(self.device, self._extra.dtype, non_blocking=True)
        if self._labels is not None and request.class_label is not None:
            self._labels[slot] = request.class_label
        self._moved = True
        return slot

    def _assign(self, places: list[Place]) -> None:
        """Fill the lanes with `places`; what depends on the place alone is gathered only where it has changed."""
        if places == self._places and not self._moved:
            return
        self._places, self._moved = places, False
        padded = places + [places[0]] * (self.lanes - len(places))
        indices = torch.tensor([[place.slot, place.entry] for place in padded]).T.to(self.device, non_blocking=True)
        self._slots, self._entries = indices[0], indices[1]
        torch.index_select(self._embeds, 0, self._entries, out=self._states)
        self._latents[:, self._shape[0] :] = self._extra.index_select(0, self._slots)

    def _step(self, ready: list[int]) -> None:
        """Apply the rows' tables to their guided outputs."""
        runs = [self._running[slot] for slot in ready]
        rows = torch.tensor(ready).to(self.device, non_blocking=True)
        numbers = self._numbers[ready].to(self.device, non_blocking=True)
        conditional = self._outputs.index_select(0, 2 * rows + PROMPT)
        output = guided(conditional, self._outputs.index_select(0, 2 * rows + NEGATIVE_PROMPT), numbers[:, _SCALE])
        for row, run in enumerate(runs):
            if run.request.guidance.rescale and run.scale != 1:
                output[row] = rescaled(output[row], conditional[row], run.request.guidance.rescale)
        state = self._state.index_select(0, rows)
        x, anchor, *history = state.unbind(1)
        clip = _spread(numbers[:, _CLIP])
        kept = _spread(numbers[:, _SKIP]) * x + _spread(numbers[:, _OUT]) * output
        kept = torch.minimum(torch.maximum(kept, -clip), clip)
        terms = (x, anchor, output, kept, *history[:-1], self._noise(runs))
        state = torch.stack(
            [_combined(numbers, 0, terms), _combined(numbers, len(TERMS), terms), kept, *history[:-1]], 1
        )
        for row, run in enumerate(runs):
            if run.request.known is not None:
                state[row, 0] = run.keep_known(state[row, 0])
        self._state.index_copy_(0, rows, state)

    def _noise(self, runs: list["_Run"]) -> Tensor:
        """Fresh noise of the rows whose step needs it, each from its own generator; zeros of the others."""
        noise = torch.zeros(len(runs), *self._shape)
        for row, run in enumerate(runs):
            if run.draws_noise[run.index]:
                noise[row] = torch.randn((1, *self._shape), generator=run.request.generator)[0]
        return noise.to(self.device, non_blocking=True)

    def _finish(self, done: list[int]) -> list[Result]:
        latents = self._state[done, 0]
        finite = latents.isfinite().flatten(1).all(1).tolist()
        results: list[Result] = []
        for slot, row, whole in zip(done, latents.unbind(0), finite, strict=True):
            key = self._running.pop(slot).request.key
            error = ValueError("the network's output is not finite; the latents are lost")
            results.append((key, row if whole else error))
            self._free.append(slot)
        self.waited = 0
        return results


class _Run:
    """A request on its way: the step that it is at, and which of the step's evaluations it still misses."""

    def __init__(self, request: DenoisingRequest) -> None:
        self.request = request
        self.index = 0
        self.draws_noise = request.table.draws_noise
        self._scales = request.guidance.scales(len(request.table))
        self._numbers = _numbers(request.table, self._scales)
        self.missing = _sides(self.scale)

    @property
    def scale(self) -> float:
        return self._scales[self.index]

    @property
    def now(self) -> Tensor:
        return self._numbers[self.index]

    def next_step(self) -> bool:
        """Go to the next step; whether there is none."""
        self.index += 1
        if self.index == len(self._scales):
            return True
        self.missing = _sides(self.scale)
        return False

    def keep_known(self, latents: Tensor) -> Tensor:
        """The latents after this step, what is known put back at its noise level (Lugmayr et al. 2022, eq. 8)."""
        known, table = self.request.known, self.request.table
        assert known is not None
        last = self.index + 1 == len(table)
        signal, deviation = (1.0, 0.0) if last else table.levels[self.index + 1].tolist()
        at_level = (signal * known.latents + deviation * known.noise).to(latents.device, non_blocking=True)
        mask = known.mask.to(latents.device, non_blocking=True)
        return mask * latents + (1 - mask) * at_level


_TIMESTEP, _INPUT_SCALE, _SKIP, _OUT, _CLIP, _SCALE = range(2 * len(TERMS), 2 * len(TERMS) + 6)
_NUMBERS: Final = 2 * len(TERMS) + 6
"""What a row's step is, in float32: the weights of x and of anchor, then the above."""


def _numbers(table: SamplerTable, scales: list[float]) -> Tensor:
    columns = [
        table.weights.flatten(1),
        table.timesteps[:, None],
        table.input_scale[:, None],
        table.prediction,
        torch.full((len(table), 1), table.clip, dtype=torch.float64),
        torch.tensor(scales, dtype=torch.float64)[:, None],
    ]
    return torch.cat(columns, dim=1).float()


def _sides(scale: float) -> list[int]:
    return [PROMPT] if scale == 1 else [PROMPT, NEGATIVE_PROMPT]


def _combined(numbers: Tensor, first: int, terms: tuple[Tensor, ...]) -> Tensor:
    """The terms' weighted sum, added up in their order: a row's bits do not depend on how many rows there are."""
    total = _spread(numbers[:, first]) * terms[0]
    for column, term in enumerate(terms[1:], first + 1):
        total.addcmul_(_spread(numbers[:, column]), term)
    return total


def _spread(column: Tensor) -> Tensor:
    """A number a row, for multiplying (B, C, h, w)."""
    return column[:, None, None, None]
