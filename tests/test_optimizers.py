import contextlib
import json

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import optimizers, schedules
from flipkit.errors import ConfigurationError, UnknownName

SHAPES = {
    "image/mlp/kernel": (3, 2),
    "image/mlp/bias": (2,),
    "text/mlp/kernel": (2, 2),
    "text/position": (4, 3),
    "logit_scale": (),
}


def variables():
    """Keras variables of a model named flip, with these canonical paths."""
    made = []
    for i, (path, shape) in enumerate(SHAPES.items()):
        *scopes, name = ["flip", *path.split("/")]
        value = np.random.default_rng(i).normal(size=shape)
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            made.append(keras.Variable(np.asarray(value, "float32"), name=name))
    return made


def gradients(step):
    rng = np.random.default_rng(100 + step)
    # Of very different sizes, so that where epsilon is added shows.
    return [
        rng.normal(size=s).astype("float32") * 10.0 ** -(3 * i)
        for i, s in enumerate(SHAPES.values())
    ]


def trained(optimizer, steps=5):
    weights = variables()
    optimizer.build(weights)
    assert [v.path for v in weights] == [f"flip/{path}" for path in SHAPES]
    apply = jax.jit(optimizer.stateless_apply)
    values, state = [v.value for v in weights], [v.value for v in optimizer.variables]
    for step in range(steps):
        values, state = apply(state, gradients(step), values)
    return dict(zip(SHAPES, map(np.asarray, values), strict=True))


def reference(rate=1e-2, b1=0.9, b2=0.95, epsilon=1e-8, decay=0.2, exempt=(), scale=None, steps=5):
    """AdamW in float64: epsilon after the correction of v, decay times the learning rate."""
    w = [np.asarray(v, "float64") for v in variables()]
    m, v = ([np.zeros_like(x) for x in w] for _ in range(2))
    for step in range(steps):
        lr = rate(step) if callable(rate) else rate
        for i, (path, g) in enumerate(zip(SHAPES, gradients(step), strict=True)):
            g = g.astype("float64")
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            mean, square = m[i] / (1 - b1 ** (step + 1)), v[i] / (1 - b2 ** (step + 1))
            update = mean / (np.sqrt(square) + epsilon)
            update = update + (0 if path in exempt else decay) * w[i]
            w[i] = w[i] - lr * (scale or {}).get(path, 1) * update
    return dict(zip(SHAPES, w, strict=True))


def assert_close(found, expected):
    for path in SHAPES:
        np.testing.assert_allclose(found[path], expected[path], 3e-7, 2e-7, err_msg=path)


def test_adamw_is_its_formula():
    assert_close(trained(flipkit.AdamW(1e-2)), reference())


def test_adamws_epsilon_comes_after_the_correction():
    found = trained(flipkit.AdamW(1e-2, epsilon=1e-4))
    expected = reference(epsilon=1e-4)
    assert_close(found, expected)
    kerass = keras.optimizers.AdamW(1e-2, weight_decay=0.2, beta_2=0.95, epsilon=1e-4)
    other = trained(kerass)
    assert max(np.abs(other[path] - expected[path]).max() for path in SHAPES) > 1e-3


def test_groups_by_path_do_not_decay_or_learn_at_another_rate():
    optimizer = flipkit.AdamW(
        1e-2,
        beta_1=0.8,
        beta_2=0.9,
        weight_decay=0.5,
        no_decay=["bias", "position"],
        rate_scale={"image": 0.1, "logit_scale": 0.0, "image/mlp/bias": 3.0},
    )
    expected = reference(
        b1=0.8,
        b2=0.9,
        decay=0.5,
        exempt=("image/mlp/bias", "text/position"),
        scale={"image/mlp/kernel": 0.1, "image/mlp/bias": 3.0, "logit_scale": 0.0},
    )
    found = trained(optimizer)
    assert_close(found, expected)
    np.testing.assert_array_equal(found["logit_scale"], variables()[-1])


def test_a_schedule_tells_each_steps_rate():
    schedule = schedules.WarmupCosine(1e-2, warmup=2).bind(1, 5)
    first = trained(flipkit.AdamW(schedule), steps=1)
    for path, variable in zip(SHAPES, variables(), strict=True):
        np.testing.assert_array_equal(first[path], variable)  # the first update has rate 0
    assert_close(
        trained(flipkit.AdamW(schedule)), reference(rate=lambda step: float(schedule(step)))
    )


def test_without_weight_decay_nothing_decays():
    assert_close(trained(flipkit.AdamW(1e-2, weight_decay=0.0)), reference(decay=0.0))


def test_gradients_are_clipped_by_their_global_norm():
    norm = np.sqrt(sum(np.sum(g.astype("float64") ** 2) for g in gradients(0)))
    clipped = flipkit.AdamW(1e-2, epsilon=1.0, weight_decay=0.0, global_clipnorm=norm / 4)
    found = trained(clipped, steps=1)
    for (path, g), variable in zip(
        zip(SHAPES, gradients(0), strict=True), variables(), strict=True
    ):
        expected = np.asarray(variable) - 1e-2 * (g / 4) / (np.abs(g / 4) + 1)
        np.testing.assert_allclose(found[path], expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("argument", ["no_decay", "rate_scale"])
def test_a_pattern_that_matches_nothing_is_refused(argument):
    patterns = {"no_decay": ["bias", "scale"], "rate_scale": {"scale": 0.1}}[argument]
    with pytest.raises(ConfigurationError, match=rf"{argument}.*'scale'"):
        flipkit.AdamW(**{argument: patterns}).build(variables())


def test_patterns_that_match_each_parameter_of_flip_but_its_matrices(tiny):
    model = tiny(image={"positions": "learned"})
    model.compile(flipkit.AdamW(no_decay=["bias", "gamma", "beta", "position"]))
    model.optimizer.build(model.trainable_variables)
    decays = dict(
        zip([v.path for v in model.trainable_variables], model.optimizer._decays, strict=True)
    )
    assert set(decays.values()) == {0.0, 0.2}
    for path, decay in decays.items():
        spared = path.endswith(("bias", "gamma", "beta", "/position"))
        assert (decay == 0) == spared, path
    assert decays["flip/logit_scale"] == decays["flip/image/class_token"] == 0.2


def test_the_config_tells_everything():
    optimizer = flipkit.AdamW(
        schedules.WarmupCosine(1e-3, warmup=8).bind(4, 400),
        beta_1=0.8,
        beta_2=0.99,
        epsilon=1e-6,
        weight_decay=0.1,
        no_decay=["bias"],
        rate_scale={"image": 0.1, "image/mlp": 0.2},
        use_ema=True,
        ema_momentum=0.9,
        global_clipnorm=1.0,
        name="mine",
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = optimizers.get(config)
    assert type(again) is flipkit.AdamW
    assert again.no_decay == ["bias"]
    assert list(again.rate_scale.items()) == [("image", 0.1), ("image/mlp", 0.2)]
    assert again.weight_decay is None  # Keras's own decay would come on top
    serialised = keras.saving.serialize_keras_object
    assert json.dumps(serialised(again)) == json.dumps(serialised(optimizer))


def test_names_are_flipkits_first_then_kerass():
    assert type(optimizers.get("adamw")) is flipkit.AdamW
    assert type(optimizers.get("sgd")) is keras.optimizers.SGD
    assert type(optimizers.get("Lion")) is keras.optimizers.Lion
    optimizer = keras.optimizers.Adam()
    assert optimizers.get(optimizer) is optimizer


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"'adamww'.*'adamw'.*Keras"):
        optimizers.get("adamww")
    with pytest.raises(ConfigurationError, match="optimizers"):
        optimizers.get(3)
