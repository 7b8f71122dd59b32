"""A row larger than the network's tile: its tiles are lanes of their own, joined each step (Bar-Tal et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.lanes import DenoisingRequest
from pipeline.diffusion.table import HISTORY, TERMS, SamplerTable


class TiledRun:
    """A request with a tiling on its way, on the engine's device.

    All tiles of a step are cut from the same latents, and a table's step is linear in the network's output. So the
    outputs are joined by the tiling's weights and the whole is stepped once: the same as stepping every tile and
    joining the latents (MultiDiffusion, eq. 5), with a tile's memory for the network and the latents' for the rest.
    """

    def __init__(self, request: DenoisingRequest, device: torch.device) -> None:
        assert request.tiling is not None
        self.request, self.tiling, self._device = request, request.tiling, device
        self.failed = False
        self.latents = request.latents.to(device)
        self._extra = None if request.extra_channels is None else request.extra_channels.to(device)
        self._anchor: Tensor | None = None
        self._kept: list[Tensor] = []  # the newest first
        self._depth = _depth(request.table)
        self._draws_noise = request.table.draws_noise
        self._scales = request.guidance.scales(len(request.table))
        rows, columns = self.tiling.weights()
        self._rows, self._columns = [w.to(device) for w in rows], [w.to(device) for w in columns]
        self._index = self._taken = 0
        self._output = torch.zeros_like(self.latents)

    @property
    def done(self) -> bool:
        return self._index == len(self._scales)

    def pieces(self) -> list[DenoisingRequest]:
        """The current step's tiles: one evaluation each, which gives the network's guided output."""
        request, extra, scale = self.request, self._extra, self._scales[self._index]
        table = _evaluation(request.table, self._index)
        return [
            DenoisingRequest(
                key=TileKey(self, tile),
                table=table,
                latents=self.tiling.cut(self.latents, tile),
                generator=request.generator,
                prompt_embeds=request.prompt_embeds,
                negative_prompt_embeds=None if scale == 1 else request.negative_prompt_embeds,
                guidance=Guidance(scale=scale, rescale=request.guidance.rescale),
                extra_channels=None if extra is None else self.tiling.cut(extra, tile),
                class_label=request.class_label,
            )
            for tile in range(self.tiling.count)
        ]

    def take(self, tile: int, output: Tensor) -> bool:
        """Add a tile's output (C, h, w); whether it was the step's last, and the step has been made."""
        assert tile == self._taken  # lanes serve the older first, so sums are added up in one order
        row, column = divmod(tile, len(self._columns))
        self.tiling.cut(self._output, tile).addcmul_(self._rows[row][:, None] * self._columns[column], output)
        self._taken += 1
        if self._taken < self.tiling.count:
            return False
        self._step()
        return True

    def _step(self) -> None:
        table, index = self.request.table, self._index
        skip, out = table.prediction[index].tolist()
        kept = (skip * self.latents).add_(self._output, alpha=out)
        if table.clip != float("inf"):
            kept.clamp_(-table.clip, table.clip)
        noise = None
        if self._draws_noise[index]:
            noise = torch.randn((1, *self.latents.shape), generator=self.request.generator)[0].to(self._device)
        older = [*self._kept, *[None] * (HISTORY - 1)][: HISTORY - 1]
        terms = (self.latents, self._anchor, self._output, kept, *older, noise)
        weights = table.weights[index].tolist()
        latents, self._anchor = _combined(weights[0], terms), _combined(weights[1], terms)
        assert latents is not None
        self.latents, self._kept = latents, [kept, *self._kept][: self._depth]
        self._output = torch.zeros_like(latents)
        self._index, self._taken = index + 1, 0


@dataclass(frozen=True, slots=True, eq=False)
class TileKey:
    """Whose tile a lane holds."""

    run: TiledRun
    tile: int


def _evaluation(table: SamplerTable, index: int) -> SamplerTable:
    """One evaluation of a table, whose result is the network's output itself."""
    weights = torch.zeros(1, 2, len(TERMS), dtype=torch.float64)
    weights[0, 0, TERMS.index("model_output")] = 1
    return SamplerTable(
        timesteps=table.timesteps[index : index + 1],
        input_scale=table.input_scale[index : index + 1],
        prediction=torch.zeros(1, 2, dtype=torch.float64),
        weights=weights,
        levels=table.levels[index : index + 1],
        start_signal=0.0,
        start_noise=1.0,
        clip=float("inf"),
    )


def _depth(table: SamplerTable) -> int:
    """How many older predictions the table asks for."""
    used = table.weights[:, :, TERMS.index("p1") : TERMS.index("p0") + HISTORY].any(0).any(0)
    return max((older + 1 for older, asked in enumerate(used.tolist()) if asked), default=0)


def _combined(weights: list[float], terms: tuple[Tensor | None, ...]) -> Tensor | None:
    """The terms' weighted sum; None if all weights are zero. What is not there yet is zero."""
    total: Tensor | None = None
    for weight, term in zip(weights, terms, strict=True):
        if weight and term is not None:
            total = weight * term if total is None else total.add_(term, alpha=weight)
    return total
