"""The lane engine: rows share calls, and none of them sees that."""

import dataclasses
import random
from collections.abc import Hashable, Iterator, Mapping

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from pipeline.diffusion.engine import MAX_WAIT_CALLS, LaneEngine
from pipeline.diffusion.guidance import Guidance, apply_guidance
from pipeline.diffusion.request import Conditioning, DenoisingRequest, Result
from pipeline.diffusion.samplers import SAMPLERS, sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig

SCHEDULE = NoiseScheduleConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)


class TextNetwork(nn.Module):
    """A small convolution that depends on its text and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 3, padding=1)
        self.text = nn.Linear(8, 16)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        self.batches.append(tuple(latents.shape))
        conditioning = self.text(inputs["states"]).mean(1)[:, :, None, None] + timesteps[:, None, None, None] / 1000
        return self.last(torch.tanh(self.first(latents[:, :4]) + conditioning))


def request(
    key: int,
    *,
    sampler: str = "ddim",
    steps: int = 5,
    guidance: Guidance | None = None,
    size: tuple[int, int] = (8, 8),
    window: int = 7,
) -> DenoisingRequest:
    guidance = guidance or Guidance()
    generator = torch.Generator().manual_seed(key)
    table = sampler_table(SCHEDULE, sampler, steps)
    texts = torch.Generator().manual_seed(1000 + key)
    return DenoisingRequest(
        key=key,
        table=table,
        latents=table.start_noise * torch.randn(4, *size, generator=generator),
        generator=generator,
        conditions=tuple(
            Conditioning(inputs={"states": torch.randn(window, 8, generator=texts)})
            for _ in range(guidance.sides if guidance.is_on else 1)
        ),
        guidance=guidance,
    )


def mixed_requests() -> Iterator[DenoisingRequest]:
    """Every sampler, 1 to 12 steps, guided or not, two sizes, two text lengths."""
    drawn = random.Random(0)
    for key, sampler in enumerate([*SAMPLERS, *SAMPLERS]):
        scale = drawn.choice((1.0, 3.0, 7.5))
        yield request(
            key,
            sampler=sampler,
            steps=drawn.randint(1, 12),
            guidance=Guidance(
                scale=scale, rescale=drawn.choice((0.0, 0.7)), interval=drawn.choice(((0.0, 1.0), (0.2, 0.6)))
            ),
            size=drawn.choice(((8, 8), (8, 8), (8, 12))),
            window=drawn.choice((7, 7, 14)),
        )


def results(requests: Iterator[DenoisingRequest] | list[DenoisingRequest], lanes: int = 6) -> dict[int, Tensor]:
    engine = LaneEngine(TextNetwork(), lanes=lanes, device="cpu", dtype=torch.float32)
    return {key: checked(result) for key, result in engine.run(requests)}  # pyright: ignore[reportReturnType]


def checked(result: Tensor | ValueError) -> Tensor:
    assert isinstance(result, Tensor)
    return result


def test_a_row_is_bitwise_the_same_beside_any_neighbors_and_in_any_order() -> None:
    together = results(mixed_requests())
    shuffled = list(mixed_requests())
    random.Random(1).shuffle(shuffled)
    again = results(shuffled)
    assert sorted(together) == sorted(again) == list(range(2 * len(SAMPLERS)))
    for row in mixed_requests():
        [alone] = results([row]).values()
        assert torch.equal(together[row.key], alone)  # pyright: ignore[reportArgumentType]
        assert torch.equal(again[row.key], alone)  # pyright: ignore[reportArgumentType]


def test_a_row_is_the_same_in_the_place_of_one_that_is_done() -> None:
    engine = LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32)
    for key, scale in enumerate((1.0, 1.0, 4.0, 4.0, 1.0)):
        [(_, result)] = engine.run([request(key, steps=3, guidance=Guidance(scale=scale))])
        [alone] = results([request(key, steps=3, guidance=Guidance(scale=scale))], lanes=2).values()
        assert torch.equal(checked(result), alone)


def test_every_call_has_the_one_batch_shape() -> None:
    network = TextNetwork()
    engine = LaneEngine(network, lanes=6, device="cpu", dtype=torch.float32)
    list(engine.run([request(key, steps=key + 1) for key in range(5)]))
    assert set(network.batches) == {(6, 4, 8, 8)}


def test_guidance_of_one_or_less_takes_one_lane_and_no_second_evaluation() -> None:
    for scale, lanes_filled in ((0.0, 40), (0.5, 40), (1.0, 40), (2.0, 80)):
        guidance = Guidance(scale=scale)
        engine = LaneEngine(TextNetwork(), lanes=4, device="cpu", dtype=torch.float32)
        list(engine.run([request(key, steps=5, guidance=guidance) for key in range(8)]))
        assert engine.stats.lanes_filled == lanes_filled
        assert engine.stats.calls == lanes_filled / 4


def test_lanes_are_refilled_at_the_next_step() -> None:
    """Steps 1 to 12 in four lanes: waiting for the slowest of each four would take 4 + 8 + 12 calls."""
    engine = LaneEngine(TextNetwork(), lanes=4, device="cpu", dtype=torch.float32)
    list(engine.run([request(key, steps=key + 1) for key in reversed(range(12))]))
    assert engine.stats.calls <= 21
    assert engine.stats.occupancy >= 78 / (4 * 21)


def test_requests_are_taken_as_lanes_get_free() -> None:
    taken: list[int] = []

    def source() -> Iterator[DenoisingRequest]:
        for key in range(50):
            taken.append(key)
            yield request(key, steps=3)

    engine = LaneEngine(TextNetwork(), lanes=4, device="cpu", dtype=torch.float32)
    stream = engine.run(source())
    next(stream)
    assert len(taken) <= 12
    assert len(list(stream)) == 49


def test_guidance_is_the_pipelines_formula() -> None:
    """One step of DDIM, written out with diffusers' rescale."""
    network, row = TextNetwork(), request(3, steps=1, guidance=Guidance(scale=4.0, rescale=0.7))
    latents, timesteps = row.latents[None].repeat(2, 1, 1, 1), row.table.timesteps.float().repeat(2)
    states = torch.stack([each.inputs["states"] for each in row.conditions])
    with torch.no_grad():
        conditional, unconditional = network(latents, timesteps, {"states": states}, None).split(1)
    rescaled = rescale_noise_cfg(unconditional + 4.0 * (conditional - unconditional), conditional, guidance_rescale=0.7)
    c_skip, c_out = row.table.c_skip[0].float(), row.table.c_out[0].float()
    weights = row.table.weights[0, 0].float()
    denoised = c_skip * row.latents + c_out * rescaled[0]
    expected = weights[0] * row.latents + weights[2] * rescaled[0] + weights[3] * denoised
    assert torch.allclose(results([row])[3], expected, atol=1e-5)


def test_at_guidance_one_only_the_conditional_prediction_counts() -> None:
    conditional, unconditional = torch.randn(2, 4, 8, 8), torch.full((2, 4, 8, 8), float("nan"))
    assert torch.equal(apply_guidance([conditional, unconditional], torch.ones(2), torch.ones(2)), conditional)


def test_a_network_guided_by_text_and_image_takes_three_evaluations() -> None:
    """One step of DDIM with both scales (Brooks et al. 2023, eq. 3), alone and beside others."""
    guidance = Guidance(scale=5.0, image_scale=1.5)
    network, row = TextNetwork(), request(3, steps=1, guidance=guidance)
    latents, timesteps = row.latents[None].repeat(3, 1, 1, 1), row.table.timesteps.float().repeat(3)
    states = torch.stack([each.inputs["states"] for each in row.conditions])
    with torch.no_grad():
        text, image, nothing = network(latents, timesteps, {"states": states}, None)
    guided = nothing + 5.0 * (text - image) + 1.5 * (image - nothing)
    c_skip, c_out = row.table.c_skip[0].float(), row.table.c_out[0].float()
    weights = row.table.weights[0, 0].float()
    expected = weights[0] * row.latents + weights[2] * guided + weights[3] * (c_skip * row.latents + c_out * guided)
    assert torch.allclose(results([row])[3], expected, atol=1e-5)
    several = [request(key, guidance=guidance, steps=3) for key in range(4)]
    together = results(several, lanes=2)
    for each in several:
        assert torch.equal(
            together[each.key], results([request(each.key, guidance=guidance, steps=3)], lanes=2)[each.key]
        )


def test_rows_with_other_merged_weights_share_no_call() -> None:
    seen: list[Hashable] = []

    def network(latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        seen.append(merged)
        return latents

    rows = [dataclasses.replace(request(key, steps=2), merged="style" if key % 2 else None) for key in range(4)]
    engine = LaneEngine(network, lanes=4, device="cpu", dtype=torch.float32)
    assert len(list(engine.run(rows))) == 4
    assert sorted(seen, key=str) == [None, None, "style", "style"]


def test_a_second_request_goes_on_with_the_latents_of_the_first() -> None:
    """As with a refiner: the first steps of one network, the others of another, beside rows that have one part."""
    whole, other = request(1, steps=6), request(2, steps=6)
    first, last = whole.table.part(0, 4), whole.table.part(4, 6)
    joined = dataclasses.replace(whole, key=3, table=first, then=dataclasses.replace(whole, table=last))
    [(_, expected)] = LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32).run([whole])
    engine = LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32)
    actual = dict(engine.run([joined, other]))
    assert set(actual) == {2, 3}
    assert torch.equal(checked(actual[3]), checked(expected))


def test_a_row_whose_first_part_fails_fails_once() -> None:
    broken = request(1, steps=2)
    broken.conditions[0].inputs["states"][:] = float("nan")
    joined = dataclasses.replace(broken, then=request(7, steps=2))
    results = list(LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32).run([joined]))
    assert [key for key, _ in results] == [1]
    assert isinstance(results[0][1], ValueError)


def test_outside_of_its_interval_guidance_is_off() -> None:
    never = results([request(1, guidance=Guidance(scale=5.0, interval=(0.0, 0.0)))])[1]
    always = results([request(1, guidance=Guidance(scale=5.0))])[1]
    half = results([request(1, guidance=Guidance(scale=5.0, interval=(0.0, 0.5)))])[1]
    off = results([request(1)])[1]
    assert torch.allclose(never, off, atol=1e-5)
    assert not torch.allclose(half, off, atol=1e-3)
    assert not torch.allclose(half, always, atol=1e-3)


def test_a_row_that_is_not_finite_fails_alone() -> None:
    broken = request(2, guidance=Guidance(scale=3.0))
    broken.conditions[0].inputs["states"][:] = float("nan")
    engine = LaneEngine(TextNetwork(), lanes=4, device="cpu", dtype=torch.float32)
    actual: dict[object, Result] = {
        result[0]: result for result in engine.run([request(1), broken, *map(request, range(3, 9))])
    }
    assert isinstance(actual[2][1], ValueError)
    assert "not finite" in str(actual[2][1])
    for key in (1, *range(3, 9)):
        assert torch.equal(checked(actual[key][1]), results([request(key)], lanes=4)[key])


def test_extra_channels_and_labels_reach_the_network() -> None:
    seen: list[tuple[Tensor, Tensor | None]] = []

    def network(latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        seen.append((latents[:, 4:].clone(), inputs.get("class_labels")))
        return latents[:, :4]

    plain = request(1, steps=1)
    conditioned = DenoisingRequest(
        key=2,
        table=plain.table,
        latents=plain.latents,
        generator=plain.generator,
        conditions=(
            Conditioning(inputs={"class_labels": torch.tensor(20)}, extra_channels=torch.full((3, 8, 8), 0.25)),
        ),
        guidance=plain.guidance,
    )
    engine = LaneEngine(network, lanes=2, device="cpu", dtype=torch.float32)
    assert len(list(engine.run([conditioned, plain]))) == 2
    (extra, labels), (no_extra, no_labels) = seen
    assert labels is not None
    assert (extra[0] == 0.25).all()
    assert labels[0] == 20
    assert no_extra.shape[1] == 0
    assert no_labels is None


def test_outside_of_its_interval_guidance_takes_no_second_evaluation() -> None:
    """Ten steps, guided in four of them: 14 evaluations a row instead of 20."""
    engine = LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32)
    guidance = Guidance(scale=5.0, interval=(0.2, 0.6))
    list(engine.run([request(key, steps=10, guidance=guidance) for key in range(2)]))
    assert engine.stats.lanes_filled == 28
    assert engine.stats.calls <= 16


@pytest.mark.parametrize("lanes", [1, 3, 5])
def test_guided_rows_fill_any_number_of_lanes(lanes: int) -> None:
    """A row's two evaluations need not be in one call, and that changes nothing but the batch's shape."""
    engine = LaneEngine(TextNetwork(), lanes=lanes, device="cpu", dtype=torch.float32)
    rows = [request(key, steps=5, guidance=Guidance(scale=4.0)) for key in range(15)]
    actual = {key: checked(result) for key, result in engine.run(rows)}
    assert engine.stats.lanes_filled == 150
    assert engine.stats.occupancy >= 0.9
    for key, expected in results([request(key, steps=5, guidance=Guidance(scale=4.0)) for key in range(15)]).items():
        assert torch.allclose(actual[key], expected, atol=1e-5)


def test_rows_of_other_shapes_wait_until_they_fill_the_lanes() -> None:
    engine = LaneEngine(TextNetwork(), lanes=4, device="cpu", dtype=torch.float32)
    rows = [request(key, steps=6, window=(7, 14)[key % 2]) for key in range(48)]
    assert len(list(engine.run(rows))) == 48
    assert engine.stats.occupancy >= 0.9


def test_a_row_of_another_shape_does_not_wait_for_ever() -> None:
    """It has its turn after MAX_WAIT_CALLS calls, and the next one of its shape after as many again."""
    engine = LaneEngine(TextNetwork(), lanes=3, device="cpu", dtype=torch.float32)
    others = {1: request(1, steps=2, window=14), 2: request(2, steps=30, window=14)}
    order = [key for key, _ in engine.run(others.get(key) or request(key, steps=10) for key in range(240))]
    turn = 3 * MAX_WAIT_CALLS / 10  # rows of the common shape in so many calls
    assert turn - 5 < order.index(1) < turn + 5
    assert 2 * turn - 5 < order.index(2) < 2 * turn + 15


def test_empty_lanes_repeat_a_rows_own_input() -> None:
    """Whatever was in a lane before, the network sees finite numbers of the right size."""
    seen: list[Tensor] = []

    def network(latents: Tensor, timesteps: Tensor, *_: object) -> Tensor:
        seen.append(latents.clone())
        return latents * float("nan") if len(seen) == 1 else latents

    engine = LaneEngine(network, lanes=3, device="cpu", dtype=torch.float32)
    results = [engine.run([request(key, steps=2)]) for key in range(2)]
    assert [isinstance(value, Tensor) for result in results for _, value in result] == [False, True]
    assert seen[-1].isfinite().all()
    assert torch.equal(seen[-1][1:], seen[-1][:1].expand(2, -1, -1, -1))


def test_a_guided_row_without_a_negative_prompt_is_refused_at_once() -> None:
    plain = request(1, steps=4)
    with pytest.raises(ValueError, match="row 1 has the conditions of 1 sides; it needs 2"):
        dataclasses.replace(plain, guidance=Guidance(scale=2.0))
    dataclasses.replace(plain, guidance=Guidance(scale=2.0, interval=(0.0, 0.0)))  # it is never guided
    with pytest.raises(ValueError, match="row 1: the conditions of its sides differ in shape"):
        dataclasses.replace(plain, conditions=(*plain.conditions, Conditioning(inputs={"states": torch.zeros(14, 8)})))


def test_noise_is_drawn_from_the_rows_own_generator_only() -> None:
    engine = LaneEngine(TextNetwork(), lanes=2, device="cpu", dtype=torch.float32)
    rows = [request(1, sampler="euler_a"), request(2, sampler="ddpm")]
    before = torch.get_rng_state()
    list(engine.run(rows))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes is 0; give at least 1"):
        LaneEngine(TextNetwork(), lanes=0, device="cpu", dtype=torch.float32)


class SmallMemory(TextNetwork):
    """Holds calls of at most so many lanes, but for the first `passing` times."""

    def __init__(self, most: int, passing: int | None = None) -> None:
        super().__init__()
        self.most, self.passing = most, passing

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        if len(latents) > self.most and self.passing != 0:
            self.passing = None if self.passing is None else self.passing - 1
            raise torch.OutOfMemoryError("out of memory (pretended)")
        return super().forward(latents, timesteps, inputs, merged)


def engine_of(network: nn.Module) -> LaneEngine:
    return LaneEngine(network, lanes=6, device="cpu", dtype=torch.float32)


def test_a_call_that_does_not_fit_into_memory_is_made_in_parts() -> None:
    requests = [request(key, guidance=Guidance(scale=3.0)) for key in range(5)]
    whole = dict(engine_of(TextNetwork()).run(requests))
    engine = engine_of(network := SmallMemory(most=2))
    for key, latents in engine.run(requests):
        torch.testing.assert_close(latents, whole[key], rtol=1e-4, atol=1e-5)
    assert {shape[0] for shape in network.batches} == {2}
    assert engine.stats.out_of_memory == 3  # six lanes twice, then three; never again
    assert engine.stats.memory_bytes == 0, "there is no GPU whose memory could be told"


class SmallMemoryForPixels(TextNetwork):
    """Holds calls of at most six lanes of 8x8."""

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        if latents.numel() > 6 * 4 * 8 * 8:
            raise torch.OutOfMemoryError("out of memory (pretended)")
        return super().forward(latents, timesteps, inputs, merged)


def test_only_the_calls_of_the_shape_that_does_not_fit_are_made_in_parts() -> None:
    requests = [request(0, size=(8, 16)), request(1)]
    whole = dict(engine_of(TextNetwork()).run(requests))
    engine = engine_of(network := SmallMemoryForPixels())
    for key, latents in engine.run([request(0, size=(8, 16)), request(1)]):
        torch.testing.assert_close(latents, whole[key], rtol=1e-4, atol=1e-5)
    assert {(shape[0], shape[3]) for shape in network.batches} == {(3, 16), (6, 8)}


def test_memory_that_was_short_once_changes_no_row() -> None:
    requests = [request(key) for key in range(5)]
    whole = dict(engine_of(TextNetwork()).run(requests))
    engine = engine_of(network := SmallMemory(most=2, passing=1))
    for key, latents in engine.run(requests):
        assert torch.equal(latents, whole[key])
    assert {shape[0] for shape in network.batches} == {6}


def test_a_single_lane_that_does_not_fit_ends_the_engine() -> None:
    engine = engine_of(SmallMemory(most=0))
    engine.add(request(0))
    with pytest.raises(torch.OutOfMemoryError):
        engine.step()
