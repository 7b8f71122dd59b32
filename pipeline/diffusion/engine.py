"""The lane engine: rows of every sampler, step count and guidance share one batch shape, refilled at every step."""

import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from pipeline.diffusion.lanes import Call, DenoisingRequest, KnownLatents, LaneBatch, Result

__all__ = ["Denoise", "DenoisingRequest", "EngineStats", "KnownLatents", "LaneEngine", "Result"]

PATIENCE: Final = 256
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

    @property
    def occupancy(self) -> float:
        """The part of the evaluations that was some row's own."""
        return self.lanes_filled / self.lanes_run if self.lanes_run else 0.0


class LaneEngine:
    """Runs requests through a network at `lanes` evaluations a call.

    A step that guidance acts on takes two evaluations, any other takes one; lanes are given out anew at every call.
    Rows of one shape share calls; of several shapes, the one that fills the most lanes goes first. A row's result
    depends on the row alone: the batch shape never changes, and everything between two calls is elementwise.
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
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return all(batch.idle for batch in self._batches.values())

    @property
    def backlog(self) -> int:
        """How many requests wait for lanes."""
        return sum(len(batch.waiting) for batch in self._batches.values())

    def add(self, request: DenoisingRequest) -> None:
        """Let a request wait for its lanes."""
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
        return batch.take(self._evaluate(call))

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

    def _turn(self) -> LaneBatch | None:
        """The group whose call is next: one that has waited for too long, else the one that fills the most lanes."""
        current = self._current
        self._batches = {group: batch for group, batch in self._batches.items() if not batch.idle or batch is current}
        busy = [batch for batch in self._batches.values() if not batch.idle]
        if not busy:
            return None
        chosen = busy[0]
        if len(busy) > 1:
            chosen = max(busy, key=lambda batch: (batch.waited >= PATIENCE, batch.load, batch is current))
            for batch in busy:
                batch.waited += batch is not chosen
        self._current = chosen
        return chosen

    def _evaluate(self, call: Call) -> Tensor:
        if self.device.type != "cuda":
            started = time.perf_counter()
            output = self.denoise(*call)
            self.stats.network_seconds += time.perf_counter() - started
            return output
        stream = torch.cuda.current_stream(self.device)
        start, end = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        start.record(stream)
        output = self.denoise(*call)
        end.record(stream)
        self._timed.append((start, end))
        while self._timed and self._timed[0][1].query():  # read where nothing has to wait for it
            start, end = self._timed.pop(0)
            self.stats.network_seconds += start.elapsed_time(end) / 1000
        return output
