"""Tiles: what is joined of them is the whole, whatever the sampler, the sizes and the neighbors."""

from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.request import Conditioning, DenoisingRequest
from pipeline.diffusion.samplers import sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.tiles import Tiling

SCHEDULE = NoiseScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LANES = 4


def pixel_by_pixel(latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
    """A network that sees no neighbors: cut or not, it says the same of each position."""
    x, extra = latents[:, :3], latents[:, 3:]
    text_mean = inputs["states"].mean((1, 2))[:, None, None, None]
    return torch.tanh(x * 0.7 + extra * (1 + text_mean) - timesteps[:, None, None, None] / 1000)


def request_of(key: Any, size: tuple[int, int], tiling: Tiling | None, sampler: str, scale: float) -> DenoisingRequest:
    generator = torch.Generator().manual_seed(3)
    extra = torch.randn(3, *size, generator=torch.Generator().manual_seed(4))
    return DenoisingRequest(
        key=key,
        table=(table := sampler_table(SCHEDULE, sampler, 6)),
        latents=table.start_noise * torch.randn((1, 3, *size), generator=generator)[0],
        generator=generator,
        conditions=tuple(
            Conditioning(inputs={"states": torch.full((2, 4), value)}, extra_channels=extra) for value in (0.3, -0.4)
        ),
        guidance=Guidance(scale=scale, interval=(0.0, 0.7)),
        tiling=tiling,
    )


def run(*requests: DenoisingRequest, denoise: Any = pixel_by_pixel) -> tuple[dict[Any, Any], LaneEngine]:
    engine = LaneEngine(denoise, lanes=LANES, device="cpu", dtype=torch.float32)
    results = list(engine.run(requests))
    assert len(results) == len({key for key, _ in results}) == len(requests)
    return dict(results), engine


@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_weights_add_up_to_one_everywhere(height: int, width: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    tiling = Tiling.of(height, width, tile, overlap)
    rows, columns = tiling.weights(2)
    total = torch.zeros(1, 2 * height, 2 * width)
    doubled = Tiling(
        height=2 * height,
        width=2 * width,
        tile_height=2 * tiling.tile_height,
        tile_width=2 * tiling.tile_width,
        tops=tuple(2 * top for top in tiling.tops),
        lefts=tuple(2 * left for left in tiling.lefts),
    )
    for index in range(tiling.count):
        row, column = divmod(index, len(tiling.lefts))
        doubled.cut(total, index).add_(rows[row][:, None] * columns[column])
    assert (total - 1).abs().max() < 1e-5
    for starts, size in ((tiling.tops, tiling.tile_height), (tiling.lefts, tiling.tile_width)):
        assert all(size - (after - before) >= overlap for before, after in pairwise(starts))


def test_what_stands_at_a_tile_s_edge_is_left_to_its_neighbor() -> None:
    [first, second], _ = Tiling.of(112, 64, 64, 16).weights()
    assert (first[-4:] == 0).all() and (second[:4] == 0).all()
    assert (first[:48] == 1).all() and (second[16:] == 1).all()


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler_a", "heun", "lms", "dpmpp_2m_sde", "unipc", "ddpm"])
def test_tiles_of_a_network_without_neighbors_join_to_the_whole(sampler: str) -> None:
    size = (13, 22)
    tiled = request_of("tiled", size, Tiling.of(*size, 8, 3), sampler, 3.0)
    whole = request_of("whole", size, None, sampler, 3.0)
    assert tiled.tiling is not None and tiled.tiling.count == 8
    results, _ = run(tiled, whole)
    assert torch.allclose(results["tiled"], results["whole"], atol=2e-5, rtol=1e-4)


def test_tiles_of_several_rows_share_calls_and_change_nothing() -> None:
    rows = [request_of(key, (8, 18), Tiling.of(8, 18, 8, 3), "ddim", 1.0) for key in "abc"]
    alone = [run(request_of(key, (8, 18), Tiling.of(8, 18, 8, 3), "ddim", 1.0)) for key in "abc"]
    together, engine = run(*rows)
    for key, (result, _) in zip("abc", alone, strict=True):
        assert torch.equal(together[key], result[key])
    assert engine.stats.calls < sum(one.stats.calls for _, one in alone)
    assert engine.stats.occupancy >= 0.9


def test_a_tile_that_fails_fails_its_row_once_and_no_other() -> None:
    def broken(latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        output = pixel_by_pixel(latents, timesteps, inputs, merged)
        return torch.where(latents[:, 3:4, :1, :1] > 50, float("nan"), output)

    bad = request_of("bad", (20, 20), Tiling.of(20, 20, 8, 2), "ddim", 1.0)
    extra = bad.conditions[0].extra_channels
    assert extra is not None
    extra[0, -8, -8] = 100.0  # the last tile's corner
    good = request_of("good", (8, 18), Tiling.of(8, 18, 8, 3), "ddim", 1.0)
    results, engine = run(bad, good, denoise=broken)
    assert isinstance(results["bad"], ValueError)
    expected, _ = run(request_of("good", (8, 18), Tiling.of(8, 18, 8, 3), "ddim", 1.0))
    assert torch.equal(results["good"], expected["good"])
    assert engine.idle
