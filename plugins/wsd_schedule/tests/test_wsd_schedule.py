import functools

import flipkit_wsd_schedule as plugin
import numpy as np
import pytest
from flipkit_wsd_schedule import WarmupStableDecay

import flipkit
from flipkit import testing


def checks():
    sound = functools.partial(WarmupStableDecay, 1e-3, warmup=5_000, shape="linear")
    for make in (WarmupStableDecay, sound):
        for check in testing.check_schedule(make):
            marks = pytest.mark.slow if check.slow else ()
            name = "default" if make is WarmupStableDecay else "linear"
            yield pytest.param(check, id=f"{name}: {check}", marks=marks)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_schedule_must(check):
    check()


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_it_rises_stays_and_falls(shape):
    """Against the formulas of arXiv 2404.06395 (the parts) and 2405.18392 (the shapes), in NumPy."""
    schedule = WarmupStableDecay(2e-3, warmup=1_000, decay=0.25, shape=shape, floor=1e-4)
    bound = schedule.bind(batch_size=10, total=8_000)
    samples = np.arange(0, 8_001, 10)
    fallen = np.clip((samples - 6_000) / 2_000, 0, 1)
    left = 1 - np.sqrt(fallen) if shape == "sqrt" else 1 - fallen
    expected = np.minimum(2e-3 * samples / 1_000, 1e-4 + 1.9e-3 * left)
    rates = np.array([float(bound(step)) for step in samples // 10])
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[-1] == np.float32(1e-4)


def test_a_longer_run_has_the_same_rates_until_it_decays():
    long, short = (WarmupStableDecay(warmup=100).bind(10, total) for total in (5_000, 1_000))
    before = [float(long(step)) for step in range(80)]
    assert before == [float(short(step)) for step in range(80)]
    assert float(long(90)) == before[-1] > float(short(90))


@pytest.mark.parametrize("warmup", [801, -1])
def test_a_warm_up_that_runs_into_the_decay_is_refused(warmup):
    with pytest.raises(flipkit.ConfigurationError, match=f"warmup={warmup} and decay=0.2"):
        WarmupStableDecay(warmup=warmup).bind(10, total=1_000)


def test_a_warm_up_until_the_decay_begins_is_not():
    bound = WarmupStableDecay(1.0, warmup=800).bind(10, total=1_000)
    assert float(bound(80)) == max(float(bound(step)) for step in range(101)) == 1


@pytest.mark.parametrize("decay", [0, 1.5])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(flipkit.ConfigurationError, match=f"Received: {decay=}"):
        WarmupStableDecay(decay=decay)


def test_an_unknown_shape_is_refused():
    with pytest.raises(flipkit.ConfigurationError, match="Received: 'cosine'"):
        WarmupStableDecay(shape="cosine")


@pytest.fixture
def installed(monkeypatch):
    """The plugin, whether an entry point names it or not."""
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()
    flipkit.plugins.register(plugin, name="flipkit-wsd-schedule")
    yield
    flipkit.plugins.reset()


def test_a_phase_takes_it_by_name_and_its_arguments_by_path(installed):
    text = flipkit.TextTransformer(32, 6, dim=16, depth=1, heads=2)
    model = flipkit.FLIP(flipkit.ViT(16, 4, dim=16, depth=1, heads=2), text, dim=8)
    run = flipkit.Run(model, phases=[flipkit.Phase(64, 8, flipkit.Constant(1e-3))])
    run = run.with_overrides({"phases.0.schedule": "wsd", "phases.0.schedule.peak": 0.5})
    assert isinstance(run.phases[0].schedule, WarmupStableDecay)
    assert run.phases[0].schedule.peak == 0.5
