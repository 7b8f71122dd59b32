"""The lane engine: rows of every sampler, step count and guidance share one fixed batch shape, refilled at every step."""

import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.diffusion.guidance import Guidance, rescaled
from pipeline.diffusion.table import HISTORY, TERMS, SamplerTable

Result = tuple[Hashable, Tensor | ValueError]
"""A request's key, and its latents (C, h, w) in float32 on the engine's device, or why there are none."""


class Denoise(Protocol):
    """The network: latents (B, C, h, w), timesteps (B,), text (B, T, D), labels (B,) or None to output (B, C', h, w)."""

    def __call__(
        self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None, /
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenoisingRequest:
    """One row's denoising: where it starts, how it goes, and what it is told."""

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

    @property
    def lanes(self) -> int:
        return 2 if self.guidance.guides else 1

    @property
    def group(self) -> Hashable:
        """Requests of one group can share a call: the same shapes of everything that goes into the network."""
        extra = None if self.extra_channels is None else self.extra_channels.shape[0]
        return self.latents.shape, self.prompt_embeds.shape, extra, self.class_label is None


@dataclass(slots=True)
class EngineStats:
    """What the engine did so far."""

    calls: int = 0
    lanes_filled: int = 0
    lanes_run: int = 0
    network_seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """The part of the evaluations that was some row's own."""
        return self.lanes_filled / self.lanes_run if self.lanes_run else 0.0


class LaneEngine:
    """Runs requests through a network at `lanes` evaluations a call.

    A guided request takes two lanes, an unguided one takes one; a free lane is refilled at the next step. Rows of
    another shape wait until those of the current shape are done. A row's result depends on the row alone: the batch
    shape never changes, and everything between two calls is elementwise.
    """

    def __init__(self, denoise: Denoise, *, lanes: int, device: torch.device | str, dtype: torch.dtype) -> None:
        if lanes < 2:
            raise ValueError(f"lanes is {lanes}; give at least 2, what a guided row takes")
        self.denoise = denoise
        self.lanes = lanes
        self.device = torch.device(device)
        self.dtype = dtype
        self.stats = EngineStats()
        self._waiting: OrderedDict[Hashable, deque[DenoisingRequest]] = OrderedDict()
        self._batch: _Batch | None = None

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._running() == 0 and not self._waiting

    @property
    def backlog(self) -> int:
        """How many requests wait for lanes."""
        return sum(len(queue) for queue in self._waiting.values())

    def add(self, request: DenoisingRequest) -> None:
        """Let a request wait for its lanes."""
        self._waiting.setdefault(request.group, deque()).append(request)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Refill the free lanes, evaluate the network once, and return the rows that are done with it."""
        self._refill()
        if self._batch is None or not self._batch.running:
            return []
        started = time.perf_counter()
        output = self._batch.evaluate(self.denoise)
        self.stats.network_seconds += time.perf_counter() - started
        self.stats.calls += 1
        self.stats.lanes_run += self.lanes
        self.stats.lanes_filled += sum(run.request.lanes for run in self._batch.running.values())
        return self._batch.advance(output)

    def run(self, requests: Iterable[DenoisingRequest]) -> Iterator[Result]:
        """Run all requests, taking them as lanes get free; results come as rows finish, in no set order."""
        source = iter(requests)
        exhausted = False
        while not (exhausted and self.idle):
            while not exhausted and self.backlog < self.lanes:
                request = next(source, None)
                if request is None:
                    exhausted = True
                else:
                    self.add(request)
            yield from self.step()

    def _running(self) -> int:
        return 0 if self._batch is None else len(self._batch.running)

    def _refill(self) -> None:
        if not self._running():
            if not self._waiting:
                return
            group, queue = next(iter(self._waiting.items()))
            if self._batch is None or self._batch.group != group:
                self._batch = _Batch(queue[0], self.lanes, self.device, self.dtype)
        assert self._batch is not None
        queue = self._waiting.get(self._batch.group)
        while queue and self._batch.fits(queue[0]):
            self._batch.start(queue.popleft())
        if queue is not None and not queue:
            del self._waiting[self._batch.group]


@dataclass(slots=True)
class _Run:
    """A request in its lanes; `slot` is its place among the latents, `lanes` its places in the network's batch."""

    request: DenoisingRequest
    slot: int
    lanes: list[int]
    numbers: Tensor  # (n, _NUMBERS), float32 on the CPU
    index: int = 0


_WEIGHTS = 2 * len(TERMS)
_NUMBERS = _WEIGHTS + 6
"""Columns of a row's numbers: weights of x and of anchor, timestep, input scale, skip, out, clip, guidance scale."""


class _Batch:
    """The buffers of one group: a slot a row, one lane or two a slot."""

    def __init__(self, like: DenoisingRequest, lanes: int, device: torch.device, dtype: torch.dtype) -> None:
        self.group = like.group
        self.device, self.dtype = device, dtype
        shape = tuple(like.latents.shape)
        self.x = torch.zeros(lanes, *shape, device=device)
        self.anchor = torch.zeros_like(self.x)
        self.noise = torch.zeros_like(self.x)
        self.history = [torch.zeros_like(self.x) for _ in range(HISTORY)]
        self.states = torch.zeros(lanes, *like.prompt_embeds.shape, device=device, dtype=dtype)
        extra = like.extra_channels
        self.extra = None if extra is None else torch.zeros(lanes, *extra.shape, device=device, dtype=dtype)
        self.labels = None if like.class_label is None else torch.zeros(lanes, device=device, dtype=torch.long)
        self.numbers = torch.zeros(lanes, _NUMBERS)
        self.slot_of_lane = torch.zeros(lanes, dtype=torch.long)
        self.lane_of_slot = torch.zeros(2, lanes, dtype=torch.long)  # conditional, unconditional
        self.running: dict[int, _Run] = {}
        self.free_slots = list(range(lanes))[::-1]
        self.free_lanes = list(range(lanes))[::-1]

    def fits(self, request: DenoisingRequest) -> bool:
        return len(self.free_lanes) >= request.lanes

    def start(self, request: DenoisingRequest) -> None:
        """Put a request into a free slot and its lanes."""
        slot = self.free_slots.pop()
        lanes = [self.free_lanes.pop() for _ in range(request.lanes)]
        for buffer in (self.anchor, self.noise, *self.history):
            buffer[slot] = 0
        self.x[slot] = request.latents.to(self.device)
        embeds = (request.prompt_embeds, request.negative_prompt_embeds)
        for lane, embed in zip(lanes, embeds, strict=False):
            if embed is None:
                raise ValueError(f"row {request.key!r} is guided but has no negative prompt's embeddings")
            self.states[lane] = embed.to(self.device, self.dtype)
            self.slot_of_lane[lane] = slot
            if self.extra is not None and request.extra_channels is not None:
                self.extra[lane] = request.extra_channels.to(self.device, self.dtype)
            if self.labels is not None and request.class_label is not None:
                self.labels[lane] = request.class_label
        self.lane_of_slot[0, slot], self.lane_of_slot[1, slot] = lanes[0], lanes[-1]
        self.running[slot] = _Run(request, slot, lanes, _numbers(request))

    def evaluate(self, denoise: Denoise) -> Tensor:
        """The network's guided output a slot, (lanes, C, h, w) in float32."""
        for slot, run in self.running.items():
            self.numbers[slot] = run.numbers[run.index]
        _, timestep, input_scale, *_ = self._columns()
        slots = self.slot_of_lane.to(self.device)
        latents = (self.x * _spread(input_scale)).index_select(0, slots).to(self.dtype)
        if self.extra is not None:
            latents = torch.cat([latents, self.extra], dim=1)
        output = denoise(latents, timestep.index_select(0, slots), self.states, self.labels).float()
        conditional, unconditional = (output.index_select(0, lanes.to(self.device)) for lanes in self.lane_of_slot)
        guided = unconditional + _spread(self._columns()[-1]) * (conditional - unconditional)
        for slot, run in self.running.items():
            amount = run.request.guidance.rescale
            if amount and run.request.guidance.scale_at(run.index, len(run.numbers)) != 1.0:
                guided[slot] = rescaled(guided[slot], conditional[slot], amount)
        return guided

    def advance(self, output: Tensor) -> list[Result]:
        """Apply every row's table to the guided output; return and free the rows whose table ends here."""
        for slot, run in self.running.items():
            if run.request.table.draws_noise(run.index):
                shape = (1, *self.noise.shape[1:])
                self.noise[slot] = torch.randn(shape, generator=run.request.generator)[0].to(self.device)
        weights, _, _, skip, out, clip, _ = self._columns()
        kept = _spread(skip) * self.x + _spread(out) * output
        kept = torch.minimum(torch.maximum(kept, -_spread(clip)), _spread(clip))
        self.history = [kept, *self.history[:-1]]
        terms = (self.x, self.anchor, output, *self.history, self.noise)
        x, anchor = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for column, term in enumerate(terms):
            x += _spread(weights[:, column]) * term
            anchor += _spread(weights[:, len(terms) + column]) * term
        self.x, self.anchor = x, anchor
        finished = []
        for slot, run in list(self.running.items()):
            run.index += 1
            if run.index == len(run.numbers):
                finished.append((run.request.key, self._finish(slot, run)))
        return finished

    def _finish(self, slot: int, run: _Run) -> Tensor | ValueError:
        latents = self.x[slot].clone()
        del self.running[slot]
        self.free_slots.append(slot)
        self.free_lanes += run.lanes
        for buffer in (self.x, *self.history):  # what is not finite must not stay
            buffer[slot] = 0
        if not torch.isfinite(latents).all():
            return ValueError("the network's output is not finite; the latents are lost")
        return latents

    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        numbers = self.numbers.to(self.device)
        weights, rest = numbers[:, :_WEIGHTS], numbers[:, _WEIGHTS:]
        timestep, input_scale, skip, out, clip, scale = rest.unbind(1)
        return weights, timestep, input_scale, skip, out, clip, scale


def _spread(column: Tensor) -> Tensor:
    """A number a slot, for multiplying (lanes, C, h, w)."""
    return column[:, None, None, None]


def _numbers(request: DenoisingRequest) -> Tensor:
    table, count = request.table, len(request.table)
    scales = torch.tensor([request.guidance.scale_at(index, count) for index in range(count)], dtype=torch.float64)
    columns = [
        table.weights.flatten(1),
        table.timesteps[:, None],
        table.input_scale[:, None],
        table.prediction,
        torch.full((count, 1), table.clip, dtype=torch.float64),
        scales[:, None],
    ]
    return torch.cat(columns, dim=1).float()
