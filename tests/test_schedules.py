import json
import pathlib

import jax
import keras
import numpy as np
import pytest

from flipkit import schedules
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.registry import register

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "schedules"


def rates(schedule, steps):
    """The schedule at each step, as a compiled training step sees it."""
    return np.asarray(jax.vmap(schedule)(np.asarray(steps, "int32")), "float64")


def warmup_cosine(samples, peak, warmup, total, floor=0.0):
    """The closed form in float64."""
    samples = np.asarray(samples, "float64")
    progress = np.clip((samples - warmup) / (total - warmup), 0, 1)
    falling = floor + (peak - floor) * (1 + np.cos(np.pi * progress)) / 2
    return np.where(samples < warmup, peak * samples / max(warmup, 1), falling)


@pytest.mark.parametrize(
    ("peak", "warmup", "total", "batch", "floor"),
    [
        (1e-3, 1_000, 10_000, 100, 0.0),
        (1e-3, 0, 10_000, 64, 1e-5),
        (1.024e-3, 51_200_000, 12_800_000_000, 65_536, 0.0),  # FLIP's L/16, Table 10
        (2e-3, 5_000, 100_000, 128, 0.0),
    ],
)
def test_warmup_cosine_is_its_closed_form(peak, warmup, total, batch, floor):
    schedule = schedules.WarmupCosine(peak, warmup, floor).bind(batch, total)
    steps = np.unique(np.linspace(0, 1.1 * total / batch, 200).astype(int))
    expected = warmup_cosine(steps * batch, peak, warmup, total, floor)
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5, atol=1e-6 * peak)


def test_warmup_cosine_starts_at_zero_peaks_after_the_warmup_and_ends_at_zero():
    schedule = schedules.WarmupCosine(1e-3, warmup=640).bind(64, 6_400)
    first, top, last, later = rates(schedule, [0, 10, 100, 1_000])
    assert first == 0
    assert top == np.float32(1e-3)
    assert last == later == 0


def test_a_floor_is_where_the_schedule_ends():
    schedule = schedules.WarmupCosine(1e-3, floor=1e-4).bind(10, 1_000)
    np.testing.assert_allclose(rates(schedule, [100, 200]), 1e-4, rtol=1e-6)


def test_constant_rises_over_its_warmup_and_stays():
    schedule = schedules.Constant(2e-3, warmup=3_000_000_000).bind(1_000_000_000, 9_000_000_000)
    expected = [0, 2e-3 / 3, 4e-3 / 3, 2e-3, 2e-3, 2e-3]
    np.testing.assert_allclose(rates(schedule, [0, 1, 2, 3, 4, 9]), expected, rtol=1e-6)


def test_constant_without_warmup_is_the_peak_from_the_first_step():
    schedule = schedules.Constant(2e-3).bind(8, 800)
    assert set(rates(schedule, range(5))) == {np.float32(2e-3)}


def test_the_same_samples_give_the_same_rate_at_any_batch_size():
    small = schedules.WarmupCosine(1e-3, warmup=1_024).bind(32, 32_768)
    large = schedules.WarmupCosine(1e-3, warmup=1_024).bind(128, 32_768)
    np.testing.assert_array_equal(
        rates(small, np.arange(0, 1_024, 4)), rates(large, np.arange(256))
    )


def test_a_schedule_can_begin_at_a_later_step():
    schedule = schedules.WarmupCosine(1e-3, warmup=100)
    now, later = schedule.bind(10, 1_000), schedule.bind(10, 1_000, start=57)
    np.testing.assert_array_equal(rates(now, range(101)), rates(later, range(57, 158)))


@pytest.mark.parametrize("warmup", [1_000, 1_001, 51_200_000])
def test_a_warmup_as_long_as_the_phase_is_refused_with_both_numbers(warmup):
    with pytest.raises(ConfigurationError, match=f"warmup={warmup:,} of 1,000 samples"):
        schedules.WarmupCosine(1e-3, warmup=warmup).bind(10, 1_000)


def test_an_unbound_schedule_says_what_it_must_be_told():
    with pytest.raises(ConfigurationError, match="bind"):
        schedules.WarmupCosine(1e-3)(0)


def test_binding_leaves_the_schedule_as_it_was():
    schedule = schedules.WarmupCosine(1e-3, warmup=10)
    schedule.bind(10, 1_000)
    assert schedule.batch_size is None
    assert schedule.total is None


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.WarmupCosine(1e-3, warmup=10, floor=1e-5),
        schedules.WarmupCosine(1e-3).bind(8, 800, start=3),
        schedules.Constant(1e-3, warmup=5),
        schedules.Constant(1e-3).bind(4, 100),
    ],
)
def test_the_config_tells_everything(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    again = schedules.get(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()


def test_a_schedule_of_ones_own_writes_only_rate():
    @register
    class Halving(schedules.Schedule):
        def rate(self, samples, total):
            return 0.5 ** (10 * samples / total)

    np.testing.assert_allclose(rates(Halving().bind(10, 1_000), [0, 10, 100]), [1, 0.5, 2**-10])
    with pytest.raises(NotImplementedError, match="Schedule defines no rate"):
        schedules.Schedule(batch_size=1, total=2)(0)


def test_an_optimizer_takes_a_schedule_and_gives_it_back_from_its_config():
    schedule = schedules.WarmupCosine(1e-3, warmup=80).bind(8, 800)
    optimizer = keras.optimizers.SGD(schedule)
    assert float(optimizer.learning_rate) == 0
    again = keras.optimizers.SGD.from_config(optimizer.get_config())
    assert again._learning_rate.get_config() == schedule.get_config()


def test_names_are_known_and_unknown_ones_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="'warmup_cosine'"):
        schedules.get("warmup_cosin")
    assert schedules.get(None) is None


def test_warmup_cosine_gives_the_official_codes_learning_rates():
    if not GOLDEN.exists():
        pytest.skip(f"no reference learning rates in {GOLDEN}")
    for name, case in json.loads((GOLDEN / "learning_rates.json").read_text()).items():
        batch, peak = case["batch_size"], case["peak_lr"]
        schedule = schedules.WarmupCosine(peak, warmup=case["warmup_steps"] * batch)
        schedule = schedule.bind(batch, case["total_steps"] * batch)
        found = rates(schedule, case["steps"])
        np.testing.assert_allclose(found, case["lr_f64"], rtol=1e-5, atol=1e-6 * peak, err_msg=name)
