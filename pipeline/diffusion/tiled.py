"""Rows larger than the network's tile: each tile takes lanes of its own, and the tiles are joined at each step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.diffusion.request import Conditioning, DenoisingRequest
from pipeline.diffusion.step import State, coefficients_of, sampler_step
from pipeline.diffusion.table import TERMS, SamplerTable


class TiledRow:
    """A request with a tiling in progress, on the engine's device.

    All tiles of a step are cut from the same latents, and a sampler step is linear in the network's output. So the
    outputs are joined with the tiling's weights and the whole is stepped once: the same as stepping each tile and
    joining the latents (MultiDiffusion, Bar-Tal et al. 2023, eq. 5), with the network's memory of one tile.
    """

    def __init__(self, request: DenoisingRequest, device: torch.device) -> None:
        assert request.tiling is not None
        self.request, self.tiling, self._device = request, request.tiling, device
        self.failed = False
        self._index = self._tiles_added = 0
        self._scales = request.guidance.scales(len(request.table))
        self._coefficients = coefficients_of(request.table, request.guidance).to(device)
        self._draws_noise = request.table.draws_noise
        self._history = request.table.history
        latents = request.latents.to(device)[None]
        anchor = torch.zeros_like(latents) if request.table.uses_anchor else None
        self._state = State(x=latents, anchor=anchor, history=())
        self._output = torch.zeros_like(latents)
        self._conditions = [_on_device(conditioning, device) for conditioning in request.conditions]
        rows, columns = self.tiling.weights()
        self._rows, self._columns = [w.to(device) for w in rows], [w.to(device) for w in columns]

    @property
    def latents(self) -> Tensor:
        """The latents (C, h, w) after the steps so far."""
        return self._state.x[0]

    @property
    def finished(self) -> bool:
        return self._index == len(self._scales)

    def tile_requests(self) -> list[DenoisingRequest]:
        """Return a request per tile of the current step: one evaluation, whose result is the guided output."""
        request, scale = self.request, self._scales[self._index]
        table = _single_evaluation(request.table, self._index)
        conditions = self._conditions[:1] if scale == 1 else self._conditions
        return [
            DenoisingRequest(
                key=TileKey(self, tile),
                table=table,
                latents=self.tiling.cut(self.latents, tile),
                generator=request.generator,
                conditions=tuple(self._cut(conditioning, tile) for conditioning in conditions),
                guidance=replace(request.guidance, scale=scale, interval=(0.0, 1.0)),
                merged=request.merged,
            )
            for tile in range(self.tiling.count)
        ]

    def _cut(self, conditioning: Conditioning, tile: int) -> Conditioning:
        """Return the conditions of a tile: its part of the extra channels, and everything else."""
        extra = conditioning.extra_channels
        return conditioning if extra is None else replace(conditioning, extra_channels=self.tiling.cut(extra, tile))

    def add_tile(self, tile: int, output: Tensor) -> bool:
        """Add a tile's output (C, h, w); after the last tile of a step, make the step and return True."""
        assert tile == self._tiles_added  # older requests get lanes first, so outputs are added in one order
        row, column = divmod(tile, len(self._columns))
        weights = self._rows[row][:, None] * self._columns[column]
        self.tiling.cut(self._output[0], tile).addcmul_(weights, output)
        self._tiles_added += 1
        if self._tiles_added < self.tiling.count:
            return False
        self._step()
        return True

    def _step(self) -> None:
        index, noise = self._index, None
        if self._draws_noise[index]:
            noise = torch.randn(self._state.x.shape, generator=self.request.generator).to(self._device)
        coefficients, thresholding = self._coefficients[index : index + 1], [self.request.table.thresholding]
        state = sampler_step(coefficients, self._state, self._output, noise, thresholding)
        self._state = state._replace(history=state.history[: self._history])
        self._output = torch.zeros_like(state.x)
        self._index, self._tiles_added = index + 1, 0


@dataclass(frozen=True, slots=True, eq=False)
class TileKey:
    """The key of a tile's request: the row and the index of the tile."""

    row: TiledRow
    tile: int


def _on_device(conditioning: Conditioning, device: torch.device) -> Conditioning:
    extra = conditioning.extra_channels
    return conditioning if extra is None else replace(conditioning, extra_channels=extra.to(device))


def _single_evaluation(table: SamplerTable, index: int) -> SamplerTable:
    """Return a table of evaluation `index` alone, whose result is the network's output itself."""
    weights = torch.zeros(1, 2, len(TERMS), dtype=torch.float64)
    weights[0, 0, TERMS.index("model_output")] = 1
    zero = torch.zeros(1, dtype=torch.float64)
    return SamplerTable(
        timesteps=table.timesteps[index : index + 1],
        c_in=table.c_in[index : index + 1],
        c_skip=zero,
        c_out=zero,
        weights=weights,
        levels=table.levels[index : index + 1],
        start_signal=0.0,
        start_noise=1.0,
        clip=float("inf"),
        draws_noise=(False,),
    )
