"""The lane engine: rows of every sampler, step count and guidance share one batch shape, refilled at every step."""

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from pipeline.diffusion.lanes import Call, DenoisingRequest, KnownLatents, LaneBatch, Result
from pipeline.diffusion.tiled import TiledRun, TileKey

__all__ = ["Denoise", "DenoisingRequest", "EngineStats", "KnownLatents", "LaneEngine", "Result"]

MAX_WAIT_CALLS: Final = 256
"""Calls of other groups after which a group has its turn, however few lanes it fills, until one of its rows is done."""


class Denoise(Protocol):
    """The network: latents (B, C, h, w), timesteps (B,), text (B, T, D), labels (B,) or None to (B, C', h, w)."""

    def __call__(
        self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None, /
    ) -> Tensor: ...


@dataclass(slots=True)
class EngineStats:
    """What the engine did so far."""

    calls: int = 0
    lanes_filled: int = 0
    lanes_run: int = 0
    network_seconds: float = 0.0
    out_of_memory: int = 0
    """How often a call did not fit into the device's memory."""
    memory_bytes: int = 0
    """The most of a GPU's memory that this process's tensors took at once."""

    @property
    def occupancy(self) -> float:
        """The part of the evaluations that was some row's own."""
        return self.lanes_filled / self.lanes_run if self.lanes_run else 0.0


class LaneEngine:
    """Runs requests through a network at `lanes` evaluations a call.

    A step that guidance acts on takes two evaluations, any other takes one; lanes are given out anew at every call.
    A row that is cut into tiles takes a lane or two for each of them, beside other rows and their tiles. What has one
    shape shares calls; of several shapes, the one that fills the most lanes goes first. A row's result depends on the
    row alone: the batch shape never changes, and everything between two calls is elementwise.
    """

    def __init__(self, denoise: Denoise, *, lanes: int, device: torch.device | str, dtype: torch.dtype) -> None:
        if lanes < 1:
            raise ValueError(f"lanes is {lanes}; give at least 1")
        self.denoise = denoise
        self.lanes = lanes
        self.device = torch.device(device)
        self.dtype = dtype
        self.stats = EngineStats()
        self._batches: dict[Hashable, LaneBatch] = {}
        self._current: LaneBatch | None = None
        self._lanes_a_call = lanes
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return all(batch.idle for batch in self._batches.values())

    @property
    def backlog(self) -> int:
        """How many requests, or tiles of them, wait for lanes."""
        return sum(len(batch.waiting) for batch in self._batches.values())

    def add(self, request: DenoisingRequest) -> None:
        """Let a request wait for its lanes."""
        if request.tiling is None or request.tiling.count == 1:
            self._wait(request)
        else:
            self._wait_for_tiles(TiledRun(request, self.device))

    def _wait_for_tiles(self, run: TiledRun) -> None:
        for piece in run.pieces():
            self._wait(piece)

    def _wait(self, request: DenoisingRequest) -> None:
        batch = self._batches.get(request.group)
        if batch is None:
            batch = self._batches[request.group] = LaneBatch(request, self.lanes, self.device, self.dtype)
        batch.waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Refill the free lanes, evaluate the network once, and return the rows that are done with it."""
        batch = self._turn()
        if batch is None:
            return []
        call, filled = batch.next_call()
        self.stats.calls += 1
        self.stats.lanes_run += self.lanes
        self.stats.lanes_filled += filled
        results: list[Result] = []
        for key, value in batch.take(self._evaluate(call)):
            results += self._take_tile(key, value) if isinstance(key, TileKey) else [(key, value)]
        self.stats.memory_bytes = _peak_memory(self.device)
        return results

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

    def _take_tile(self, key: TileKey, value: Tensor | ValueError) -> list[Result]:
        """The result of a tile's row, once there is one; a tile that fails fails its row."""
        run = key.run
        if run.failed:
            return []
        if isinstance(value, ValueError):
            run.failed = True
            for batch in self._batches.values():
                others = (one for one in batch.waiting if not (isinstance(one.key, TileKey) and one.key.run is run))
                batch.waiting = deque(others)
            return [(run.request.key, value)]
        if not run.take(key.tile, value):
            return []
        if run.done:
            return [(run.request.key, run.latents)]
        self._wait_for_tiles(run)
        return []

    def _turn(self) -> LaneBatch | None:
        """The group whose call is next: one that has waited for too long, else the one that fills the most lanes."""
        current = self._current
        self._batches = {group: batch for group, batch in self._batches.items() if not batch.idle or batch is current}
        busy = [batch for batch in self._batches.values() if not batch.idle]
        if not busy:
            return None
        chosen = busy[0]
        if len(busy) > 1:
            chosen = max(busy, key=lambda batch: (batch.waited >= MAX_WAIT_CALLS, batch.load, batch is current))
            for batch in busy:
                batch.waited += batch is not chosen
        self._current = chosen
        return chosen

    def _evaluate(self, call: Call) -> Tensor:
        if self.device.type != "cuda":
            started = time.perf_counter()
            output = self._denoised(call)
            self.stats.network_seconds += time.perf_counter() - started
            return output
        stream = torch.cuda.current_stream(self.device)
        start, end = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        start.record(stream)
        output = self._denoised(call)
        end.record(stream)
        self._timed.append((start, end))
        while self._timed and self._timed[0][1].query():  # read where nothing has to wait for it
            start, end = self._timed.pop(0)
            self.stats.network_seconds += start.elapsed_time(end) / 1000
        return output

    def _denoised(self, call: Call) -> Tensor:
        """The network's output; in smaller parts, from then on, where a call does not fit into the device's memory.

        Another batch shape can give other last bits: such rows may differ from those of a device with more memory."""
        cleared = False
        while True:
            try:
                parts = zip(*(_parts(of, self.lanes, self._lanes_a_call) for of in call), strict=True)
                return torch.cat([self.denoise(*part) for part in parts])
            except torch.OutOfMemoryError:
                self.stats.out_of_memory += 1
                if self._lanes_a_call == 1:
                    raise
                if cleared:  # the first time, what earlier calls have left may be all that was in the way
                    self._lanes_a_call = -(-self._lanes_a_call // 2)
            torch.cuda.empty_cache()
            cleared = True


def _parts(of: Tensor | None, lanes: int, size: int) -> Sequence[Tensor | None]:
    return [None] * -(-lanes // size) if of is None else of.split(size)


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
