"""The lane engine: rows of any sampler, step count and guidance share calls of one batch shape."""

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor

from pipeline.diffusion.lanes import LaneGroup, NetworkInput
from pipeline.diffusion.request import DenoisingRequest, Result
from pipeline.diffusion.tiled import TiledRow, TileKey

MAX_WAIT_CALLS: Final = 256
"""Calls of other groups after which a group comes first, however few lanes it fills, until one of its rows finishes."""

_PROBE_SIDE: Final = 64
"""Latents per side with which a network that failed is tried again: those of 512 pixels."""


class Denoiser(Protocol):
    """The network: (latents (B, C, h, w), timesteps (B,), conditions (B, ...) by name) -> (B, C', h, w).

    `merged` names what is merged into its weights for this call; None: nothing."""

    def __call__(
        self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable, /
    ) -> Tensor: ...


@dataclass(slots=True)
class EngineStats:
    """Counters of what an engine did."""

    calls: int = 0
    lanes_filled: int = 0
    lanes_run: int = 0
    network_seconds: float = 0.0
    out_of_memory: int = 0
    """Calls that did not fit into the device's memory."""
    memory_bytes: int = 0
    """The peak of GPU memory that this process's tensors took."""

    @property
    def occupancy(self) -> float:
        """The share of the evaluated lanes that held a row."""
        return self.lanes_filled / self.lanes_run if self.lanes_run else 0.0


class LaneEngine:
    """Runs requests through a network with `lanes` evaluations per call.

    A guided step takes two evaluations, any other step takes one; lanes are assigned anew for each call. A tiled row
    takes one or two lanes per tile, beside other rows and their tiles. Requests of one shape form a group and share
    calls; the group that fills the most lanes is called first. A row's result depends on the row alone: the batch
    shape never changes, and everything between two calls is elementwise.
    """

    def __init__(self, denoiser: Denoiser, *, lanes: int, device: torch.device | str, dtype: torch.dtype) -> None:
        if lanes < 1:
            raise ValueError(f"lanes is {lanes}; give at least 1")
        self.denoiser = denoiser
        self.lanes = lanes
        self.device = torch.device(device)
        self.dtype = dtype
        self.stats = EngineStats()
        self._groups: dict[Hashable, LaneGroup] = {}
        self._current: LaneGroup | None = None
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def idle(self) -> bool:
        """True if no request is running or waiting."""
        return all(group.idle for group in self._groups.values())

    @property
    def backlog(self) -> int:
        """The number of requests and tiles that wait for lanes."""
        return sum(len(group.waiting) for group in self._groups.values())

    def add(self, request: DenoisingRequest) -> None:
        """Queue a request."""
        if request.then is not None:
            request = replace(request, key=_PartKey(request.key, request.then), then=None)
        if request.tiling is None or request.tiling.count == 1:
            self._queue(request)
        else:
            self._queue_tiles(TiledRow(request, self.device))

    def _queue_tiles(self, row: TiledRow) -> None:
        for request in row.tile_requests():
            self._queue(request)

    def _queue(self, request: DenoisingRequest) -> None:
        group = self._groups.get(request.group)
        if group is None:
            group = self._groups[request.group] = LaneGroup(request, self.lanes, self.device, self.dtype)
        group.waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Refill the free lanes, evaluate the network once, and return the rows that it finished."""
        group = self._next_group()
        if group is None:
            return []
        try:
            return self._step_group(group)
        except (RuntimeError, MemoryError) as error:
            return self._fail_group(group, error)

    def _step_group(self, group: LaneGroup) -> list[Result]:
        network_input, filled = group.next_input()
        self.stats.calls += 1
        self.stats.lanes_run += self.lanes
        self.stats.lanes_filled += filled
        results: list[Result] = []
        for key, value in group.accept(self._evaluate(group, network_input)):
            results += self._accept(key, value)
        self.stats.memory_bytes = _peak_memory(self.device)
        return results

    def _fail_group(self, group: LaneGroup, error: Exception) -> list[Result]:
        """Return the error as the result of all rows of a group; raise it if smaller rows would meet it too."""
        small = group.network_input(_PROBE_SIDE)
        if small is None:
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            self._call_network(group, small)
        except (RuntimeError, MemoryError):
            raise error from None
        self._groups = {key: other for key, other in self._groups.items() if other is not group}
        self._current = None
        results: list[Result] = []
        for key in group.request_keys():
            results += self._accept(key, error)
        return results

    def run(self, requests: Iterable[DenoisingRequest]) -> Iterator[Result]:
        """Run all requests, taken as lanes get free; yield results as rows finish, in no set order."""
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

    def _accept(self, key: Hashable, value: Tensor | Exception) -> list[Result]:
        """Return the results of rows that a finished request completes; one that has a next request goes on."""
        if isinstance(key, TileKey):
            return self._accept_tile(key, value)
        if not isinstance(key, _PartKey):
            return [(key, value)]
        if isinstance(value, Exception):
            return [(key.row, value)]
        self.add(replace(key.then, key=key.row, latents=value))
        return []

    def _accept_tile(self, key: TileKey, value: Tensor | Exception) -> list[Result]:
        """Return the result of a tile's row if this tile completes it; a tile that fails fails its row."""
        row = key.row
        if row.failed:
            return []
        if isinstance(value, Exception):
            row.failed = True
            for group in self._groups.values():
                others = (one for one in group.waiting if not (isinstance(one.key, TileKey) and one.key.row is row))
                group.waiting = deque(others)
            return [(row.request.key, value)]
        if not row.add_tile(key.tile, value):
            return []
        if row.finished:
            return [(row.request.key, row.latents)]
        self._queue_tiles(row)
        return []

    def _next_group(self) -> LaneGroup | None:
        """Return the group to call: one that was skipped too often, else the one that fills the most lanes."""
        current = self._current
        self._groups = {key: group for key, group in self._groups.items() if not group.idle or group is current}
        busy = [group for group in self._groups.values() if not group.idle]
        if not busy:
            return None
        chosen = busy[0]
        if len(busy) > 1:
            chosen = max(busy, key=lambda group: (group.calls_skipped >= MAX_WAIT_CALLS, group.load, group is current))
            for group in busy:
                group.calls_skipped += group is not chosen
        self._current = chosen
        return chosen

    def _evaluate(self, group: LaneGroup, network_input: NetworkInput) -> Tensor:
        if self.device.type != "cuda":
            started = time.perf_counter()
            output = self._call_network(group, network_input)
            self.stats.network_seconds += time.perf_counter() - started
            return output
        stream = torch.cuda.current_stream(self.device)
        start, end = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        start.record(stream)
        output = self._call_network(group, network_input)
        end.record(stream)
        self._timed.append((start, end))
        while self._timed and self._timed[0][1].query():  # reads only what has finished: the host does not wait
            start, end = self._timed.pop(0)
            self.stats.network_seconds += start.elapsed_time(end) / 1000
        return output

    def _call_network(self, group: LaneGroup, network_input: NetworkInput) -> Tensor:
        """Return the network's output; after a call that does not fit into memory, the group's calls are split.

        Another batch shape can give other last bits: such rows may differ from those of a device with more memory."""
        cleared = False
        while True:
            try:
                return torch.cat([self.denoiser(*part) for part in network_input.parts(group.lanes_per_part)])
            except torch.OutOfMemoryError:
                self.stats.out_of_memory += 1
                if group.lanes_per_part == 1:
                    raise
                if cleared:  # the first time, freeing the cache of earlier calls may be enough
                    group.lanes_per_part = -(-group.lanes_per_part // 2)
            torch.cuda.empty_cache()
            cleared = True


@dataclass(frozen=True, slots=True, eq=False)
class _PartKey:
    """The key of a request that another one goes on with: the row's key, and that request."""

    row: Hashable
    then: DenoisingRequest


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
