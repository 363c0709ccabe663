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


# LARS -----------------------------------------------------------------------------------------


def lars_reference(rate=1e-1, momentum=0.9, decay=0.0, trust=0.001, steps=5):
    """LARS in float64, as its docstring defines it."""
    w = [np.asarray(v, "float64") for v in variables()]
    m = [np.zeros_like(x) for x in w]
    for step in range(steps):
        for i, g in enumerate(gradients(step)):
            d = g.astype("float64")
            if d.ndim > 1:
                d = d + decay * w[i]
                d = d * trust * np.linalg.norm(w[i]) / np.linalg.norm(d)
            m[i] = momentum * m[i] + d
            w[i] = w[i] - rate * m[i]
    return dict(zip(SHAPES, w, strict=True))


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.5, "trust": 0.02}, {"weight_decay": 0.3, "momentum": 0.0}]
)
def test_lars_is_its_formula(settings):
    expected = lars_reference(
        **{{"weight_decay": "decay"}.get(k, k): v for k, v in settings.items()}
    )
    found = trained(flipkit.LARS(1e-1, **settings))
    for path in SHAPES:
        np.testing.assert_allclose(found[path], expected[path], 1e-6, 1e-7, err_msg=path)


def test_lars_makes_a_step_whatever_the_gradients_size_and_plain_ones_of_vectors():
    kernel, bias = keras.Variable(np.full((2, 2), 3.0, "float32")), keras.Variable([1.0, 1.0])
    optimizer = flipkit.LARS(1.0, momentum=0.0, trust=0.01)
    optimizer.build([kernel, bias])
    optimizer.apply([np.full((2, 2), 1e5, "float32"), np.float32([0.5, -0.5])])
    np.testing.assert_allclose(kernel, np.full((2, 2), 3 - 0.03), rtol=1e-6)
    np.testing.assert_allclose(bias, [0.5, 1.5])


def test_lars_takes_the_gradient_where_there_is_no_norm():
    weights = [keras.Variable(np.zeros((2, 2), "float32")), keras.Variable(np.ones((2, 2)))]
    optimizer = flipkit.LARS(1.0, momentum=0.0)
    optimizer.build(weights)
    optimizer.apply([np.full((2, 2), 0.25, "float32"), np.zeros((2, 2), "float32")])
    np.testing.assert_array_equal(weights[0], np.full((2, 2), -0.25))
    np.testing.assert_array_equal(weights[1], np.ones((2, 2)))


def test_lars_comes_back_from_its_config():
    optimizer = flipkit.LARS(0.3, momentum=0.8, weight_decay=1e-4, trust=0.002, global_clipnorm=1.0)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = optimizers.get(config)
    assert type(again) is flipkit.LARS
    assert again.get_config() == optimizer.get_config()
    assert type(optimizers.get("lars")) is flipkit.LARS


# Layer decay ----------------------------------------------------------------------------------


def test_rates_fall_from_block_to_block(tiny):
    model = tiny(image={"depth": 3, "positions": "learned"})
    scale = optimizers.layer_decay(model.image, 0.75)
    optimizer = flipkit.AdamW(rate_scale=scale)
    model.build()
    optimizer.build(model.trainable_variables)
    for variable, factor in zip(model.trainable_variables, optimizer._factors, strict=True):
        tower, *parts = variable.path.removeprefix("flip/").split("/")
        if tower != "image" or parts[0] == "norm":
            expected = 1.0
        elif parts[0].startswith("block_"):
            expected = 0.75 ** (3 - int(parts[0][-2:]))
        else:
            assert parts[0] in ("patch_embed", "class_token", "position")
            expected = 0.75**4
        assert factor == pytest.approx(expected), variable.path


def test_decay_of_rates_is_a_factor():
    with pytest.raises(ConfigurationError, match=r"\(0, 1\]. Received: decay=1.5"):
        optimizers.layer_decay(flipkit.ViT(16, 4, 16, 1, 2), 1.5)
