import functools
import json

import jax
import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import layers, paths
from flipkit.errors import ConfigurationError
from flipkit.random import Seed, seed_scope

LENGTHS = (32, 49, 77, 98, 99, 128, 129, 196, 197, 256, 577)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(layer, x, **kwargs):
    """The layer's output; compiled as one program, which is quicker than op by op."""
    return np.asarray(jax.jit(lambda x: layer(x, **kwargs))(x))


def rebuilt(layer):
    """The layer that its config, as JSON holds it, describes."""
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    return keras.saving.deserialize_keras_object(config)


# Patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (8, 12, 3), (12, 4, 1)])
def test_patchify_cuts_row_by_row(height, width, channels):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, channels), "uint8")
    expected = [
        image[y : y + 4, x : x + 4].reshape(-1)
        for image in images
        for y in range(0, height, 4)
        for x in range(0, width, 4)
    ]
    patches = layers.patchify(images, 4)
    assert patches.dtype == "uint8"
    np.testing.assert_array_equal(patches, np.reshape(expected, (2, -1, 16 * channels)))


@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 1)])
def test_unpatchify_undoes_patchify(grid):
    images = noise(2, grid[0] * 4, grid[1] * 4, 3)
    np.testing.assert_array_equal(layers.unpatchify(layers.patchify(images, 4), 4, grid), images)


@pytest.mark.parametrize("shape", [(3, 7), (3, 7, 5), (3, 7, 2, 2)])
def test_gather_takes_each_rows_own_choice(shape):
    x = noise(*shape)
    ids = np.array([[0, 6], [3, 3], [5, 1]], "int32")
    np.testing.assert_array_equal(
        layers.gather(x, ids), np.stack([r[i] for r, i in zip(x, ids, strict=True)])
    )


def mae_positions(rows, columns, dim):
    """MAE's get_2d_sincos_pos_embed, written out: the column's half, then the row's."""
    table = np.zeros((rows * columns, dim))
    for row in range(rows):
        for column in range(columns):
            for i in range(dim // 4):
                omega = 1 / 10_000 ** (i / (dim / 4))
                for half, place in enumerate((column, row)):
                    start = half * dim // 2
                    table[row * columns + column, start + i] = np.sin(place * omega)
                    table[row * columns + column, start + dim // 4 + i] = np.cos(place * omega)
    return table


@pytest.mark.parametrize(("grid", "dim"), [((3, 3), 8), ((2, 5), 16), ((14, 14), 32)])
def test_sincos_positions_are_maes(grid, dim, close):
    found = layers.sincos_positions(grid, dim)
    assert found.dtype == np.float32
    close(found, mae_positions(*grid, dim))


@pytest.mark.parametrize(("size", "new_size"), [(14, 14), (4, 9), (14, 6), (7, 1), (1, 3)])
def test_resampling_is_the_antialiased_cubic_of_jax(size, new_size, close):
    line = np.random.default_rng(0).normal(size=(size, 2)).astype("float32")
    expected = jax.image.resize(line, (new_size, 2), "cubic", antialias=True)
    matrix = layers.resampling(size, new_size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    close(matrix @ line, expected, ulps=64)


def test_resampled_positions_lie_where_they_lay_in_the_picture():
    """A table that rises with rows and columns rises as much, over the whole picture, in any grid."""
    rows, columns = np.indices((8, 8)).reshape(2, -1) / 8 + 1 / 16
    table = np.stack([rows, columns], axis=1).astype("float32")
    found = layers.resample_positions(table, (8, 8), (4, 2)).reshape(4, 2, 2)
    np.testing.assert_allclose(found[:, 0, 0], (np.arange(4) + 0.5) / 4, atol=0.03)
    np.testing.assert_allclose(found[0, :, 1], (np.arange(2) + 0.5) / 2, atol=0.03)


def test_positions_of_their_own_grid_stay_the_same_object():
    table = layers.sincos_positions((3, 4), 16)
    assert layers.resample_positions(table, (3, 4), [3, 4]) is table


def test_the_first_half_of_a_position_tells_the_column():
    table = layers.sincos_positions((3, 4), 16).reshape(3, 4, 16)
    np.testing.assert_array_equal(table[0, :, :8], table[2, :, :8])
    np.testing.assert_array_equal(table[:, 0, 8:], table[:, 3, 8:])


# Activations ----------------------------------------------------------------------------------


def test_activations_are_their_formulas():
    from scipy.special import erf

    x = np.linspace(-6, 6, 101)
    expected = {
        "gelu": x * (1 + erf(x / np.sqrt(2))) / 2,
        "gelu_tanh": x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "relu2": np.maximum(x, 0) ** 2,
    }
    assert expected.keys() >= layers.ACTIVATIONS.keys()
    for name in layers.ACTIVATIONS:
        found = layers.activation(name)(ops.convert_to_tensor(x, "float32"))
        np.testing.assert_allclose(found, expected[name], atol=1e-5, err_msg=name)


def test_an_unknown_activation_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="'gelu_tanh'"):
        layers.MLP(8, 16, activation="gelu_tan")


# Attention ------------------------------------------------------------------------------------


def weight(layer, name):
    return np.asarray(getattr(layer, name).kernel), np.asarray(getattr(layer, name).bias)


def reference_attention(layer, x, mask=None, causal=False):
    """Multi-head attention in float64, head by head."""
    x = x.astype("float64")
    query, key, value = (
        x @ k + b for k, b in (weight(layer, n) for n in ("query", "key", "value"))
    )
    batch, length, dim = x.shape
    size = dim // layer.heads
    outputs = np.zeros_like(x)
    for b in range(batch):
        for start in range(0, dim, size):
            part = slice(start, start + size)
            scores = query[b, :, part] @ key[b, :, part].T / np.sqrt(size)
            if causal:
                scores[np.triu_indices(length, 1)] = -np.inf
            if mask is not None:
                scores[:, ~mask[b]] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            outputs[b, :, part] = weights @ value[b, :, part]
    kernel, bias = weight(layer, "out")
    return outputs @ kernel + bias


@pytest.fixture(scope="module")
def attentions():
    """{(impl, causal): layer}, with the same weights."""
    found = {}
    for impl in ("einsum", "fused"):
        for causal in (False, True):
            layer = layers.Attention(8, 2, causal=causal, impl=impl)
            layer.build((None, None, 8))
            found[impl, causal] = layer
    for variables in zip(*(layer.variables for layer in found.values()), strict=True):
        value = noise(*variables[0].shape, seed=len(variables[0].path)) * 0.6
        for variable in variables:
            variable.assign(value)
    return found


@pytest.mark.parametrize("length", LENGTHS)
def test_both_implementations_of_attention_are_the_plain_formula(attentions, length, close):
    x = noise(2, length, 8, seed=length)
    mask = np.random.default_rng(length).random((2, length)) < 0.6
    mask[:, 0] = True

    @jax.jit
    def outputs(x):
        return {
            (*key, str(masked)): layer(x, mask=mask if masked else None)
            for key, layer in attentions.items()
            for masked in (False, True)
        }

    found = outputs(x)
    for causal in (False, True):
        for masked in (False, True):
            layer = attentions["einsum", causal]
            expected = reference_attention(layer, x, mask if masked else None, causal)
            for impl in ("einsum", "fused"):
                close(
                    found[impl, causal, str(masked)],
                    expected,
                    err_msg=f"{impl}, {causal=}, {masked=}",
                )


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_whose_tokens_are_all_masked_is_one_without_a_mask(attentions, causal, close):
    x, mask = noise(2, 5, 8), np.array([[False] * 5, [True] * 3 + [False] * 2])
    for impl in ("einsum", "fused"):
        layer = attentions[impl, causal]
        found = run(layer, x, mask=mask)
        expected = reference_attention(layer, x, mask | ~mask.any(1, keepdims=True), causal)
        close(found, expected, err_msg=impl)


def test_a_masked_token_changes_nothing(attentions, close):
    x, mask = noise(1, 6, 8), np.array([[True, True, False, True, False, True]])
    other = x.copy()
    other[:, [2, 4]] = 7
    seen = mask[0]
    for impl in ("einsum", "fused"):
        layer = attentions[impl, False]
        close(run(layer, x, mask=mask)[:, seen], run(layer, other, mask=mask)[:, seen])


def test_the_softmax_of_bfloat16_attention_is_float32(monkeypatch):
    seen = []
    softmax = ops.softmax

    def watched(x, **kwargs):
        seen.append(x.dtype)
        return softmax(x, **kwargs)

    monkeypatch.setattr(ops, "softmax", watched)
    layer = layers.Attention(8, 2, impl="einsum", dtype="mixed_bfloat16")
    outputs = run(layer, noise(2, 5, 8))
    assert outputs.dtype == "bfloat16"
    assert seen == ["float32"]
    assert layer.query.kernel.dtype == "float32"


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_attention_is_near_the_formula(attentions, causal):
    """Of an odd number of tokens, the last of a row hidden: padded and cropped, told by lengths."""
    x, mask = noise(2, 49, 8), np.arange(49) < [[49], [20]]
    for impl in ("einsum", "fused"):
        layer = layers.Attention(8, 2, causal=causal, impl=impl, dtype="mixed_bfloat16")
        layer.build((None, None, 8))
        for variable, like in zip(layer.variables, attentions[impl, causal].variables, strict=True):
            variable.assign(like)
        expected = reference_attention(layer, x, mask, causal)
        error = np.abs(run(layer, x, mask=mask).astype("float32") - expected).max()
        assert error < 0.03 * np.abs(expected).max()


# What a machine with an NVIDIA GPU would trace ------------------------------------------------


class Machine:
    """An Ampere GPU with cuDNN, as far as a trace can tell; its kernel refuses what cuDNN's does.

    `asked` lists what the kernel was asked for: (queries, keys, options).
    """

    platform = "gpu"

    def __init__(self):
        self.asked, self.cudnn, self.compute_capability = [], True, "8.0"
        self.attend = jax.nn.dot_product_attention

    def answer(self, query, key, value, bias=None, mask=None, *, implementation=None, **options):
        if implementation == "cudnn":
            if not self.cudnn:
                raise RuntimeError("cuDNN is not detected.")
            sizes, head_dim = (query.shape[1], key.shape[1]), query.shape[3]
            wrong = any(size % 2 for size in sizes) or head_dim % 8 or head_dim > 128
            if wrong or query.dtype not in ("bfloat16", "float16") or not bias is mask is None:
                raise NotImplementedError(f"{query.shape}, {key.shape}, {query.dtype}")
            if sizes != (2, 2):  # has_kernel's question
                lengths = "query_seq_lengths" in options, "key_value_seq_lengths" in options
                self.asked.append((*sizes, options["is_causal"], *lengths))
        return self.attend(query, key, value, bias, mask, implementation="xla", **options)


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(jax.nn, "dot_product_attention", found.answer)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    monkeypatch.setattr(jax, "devices", lambda: [found])
    return found


def traced(layer, length, mask=None, asking=None, remat=False):
    """Traces the gradient of `layer` for `length` tokens; nothing is compiled."""
    if not layer.built:
        layer.build((None, None, layer.dim))

    def loss(x, mask):
        call = functools.partial(
            layer, mask=mask, queries=None if asking is None else x[:, :asking]
        )
        return ops.sum(ops.cast((keras.remat(call) if remat else call)(x), "float32"))

    x = jax.ShapeDtypeStruct((2, length, layer.dim), layer.compute_dtype)
    mask = None if mask is None else jax.ShapeDtypeStruct((2, length), "bool")
    jax.eval_shape(jax.grad(loss), x, mask)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("causal", "masked"), [(False, False), (True, False), (False, True)], ids=str
)
def test_cudnn_is_asked_for_even_numbers_of_tokens_and_lengths(machine, causal, masked, remat):
    layer = layers.Attention(16, 2, causal=causal, dtype="mixed_bfloat16")
    for length in (32, 49, 77, 98, 99, 128, 197):
        machine.asked.clear()
        traced(layer, length, masked or None, remat=remat)
        even, told = length + length % 2, bool(length % 2) or masked
        assert set(machine.asked) == {(even, even, causal, told, told)}, length


@pytest.mark.parametrize(
    ("arguments", "call", "changes"),
    [
        ({"dtype": "float32"}, {}, {}),
        ({"dim": 8}, {}, {}),  # heads of 4
        ({"dim": 2 * 136}, {}, {}),  # too wide before Hopper
        ({}, {}, {"compute_capability": "7.5"}),
        ({}, {}, {"cudnn": False}),
        ({"causal": True}, {"mask": True}, {}),  # lengths of each query's own
        ({}, {"asking": 1}, {}),  # no more scores than keys
    ],
    ids=str,
)
def test_what_cudnn_does_not_take_is_einsum(machine, arguments, call, changes, caplog):
    vars(machine).update(changes)
    options = {"dim": 16, "heads": 2, "dtype": "mixed_bfloat16", **arguments}
    traced(layers.Attention(**options), 49, **call)
    traced(layers.Attention(**options, impl="fused"), 49, **call)
    assert not machine.asked
    assert not caplog.records


def test_auto_is_einsum_on_a_cpu():
    if not keras.distribution.list_devices()[0].startswith("cpu"):
        pytest.skip("not a CPU")
    assert layers.Attention(8, 2)._implementation() == "einsum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9, "heads": 2}, "dim=9, heads=2"),
        ({"dim": 8, "heads": 2, "impl": "fuse"}, "'fused'"),
    ],
)
def test_attention_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        layers.Attention(**arguments)


# Dropout --------------------------------------------------------------------------------------


def dropped(x, rate, seed=None, **kwargs):
    layer = layers.Dropout(rate, name="drop", **kwargs)
    with seed_scope(seed):
        return run(layer, x, training=True)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate):
    x = np.ones((200, 100, 4), "float32")
    y = dropped(x, rate, Seed(1))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(1 - rate)}
    assert np.mean(y == 0) == pytest.approx(rate, abs=0.005)
    assert y.mean() == pytest.approx(1, abs=0.03)


def test_dropout_is_the_identity_outside_training_and_at_rate_0():
    x = noise(2, 3, 4)
    np.testing.assert_array_equal(layers.Dropout(0.5)(x), x)
    np.testing.assert_array_equal(layers.Dropout(0.0)(x, training=True), x)


def test_dropout_of_a_row_does_not_depend_on_the_batch():
    x = noise(8, 5, 4)
    whole = dropped(x, 0.5, Seed(1, 2))
    rows = np.array([6, 1], "int32")
    np.testing.assert_array_equal(dropped(x[rows], 0.5, Seed(1, 2, rows)), whole[rows])


def test_dropout_differs_by_step_by_seed_and_by_path():
    x = np.ones((4, 50), "float32")
    layer = layers.Dropout(0.5, name="other")
    with seed_scope(Seed(1, 2)):
        other = run(layer, x, training=True)
    draws = [dropped(x, 0.5, seed) for seed in (Seed(1, 2), Seed(1, 3), Seed(2, 2))]
    assert len({y.tobytes() for y in [*draws, other]}) == 4
    np.testing.assert_array_equal(dropped(x, 0.5, Seed(1, 2)), draws[0])


def test_noise_shape_drops_axes_together():
    rows = dropped(np.ones((300, 5, 4), "float32"), 0.5, Seed(1), noise_shape=(None, 1, 1))
    assert np.all(rows == rows[:, :1, :1])
    assert np.mean(rows == 0) == pytest.approx(0.5, abs=0.1)
    channels = dropped(np.ones((30, 5, 40), "float32"), 0.5, Seed(1), noise_shape=(None, 1, None))
    assert np.all(channels == channels[:, :1])
    assert 0 < np.mean(channels[0, 0] == 0) < 1


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_dropout_refuses_a_rate_that_is_no_share(rate):
    with pytest.raises(ConfigurationError, match=r"\[0, 1\)"):
        layers.Dropout(rate)


def test_dropout_alone_is_a_keras_layer_with_a_state_of_its_own():
    x = np.ones((4, 50), "float32")
    layer, twin = layers.Dropout(0.5, seed=3), layers.Dropout(0.5, seed=3)
    first, second = (np.asarray(layer(x, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(twin(x, training=True), first)


def test_rows_and_calls_of_dropout_alone_are_not_interchangeable():
    layer = layers.Dropout(0.5, seed=0)
    draws = [np.asarray(layer(np.ones((4, 50), "float32"), training=True)) for _ in range(4)]
    assert len({row.tobytes() for rows in draws for row in rows}) == 16


def test_dropout_trains_in_a_plain_keras_model():
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dropout(0.5, seed=1), keras.layers.Dense(1, name="dense")]
    )
    model.compile("sgd", "mse")
    generator = model.layers[0].generator
    before = np.asarray(generator.state)
    x = np.ones((8, 64), "float32")
    history = model.fit(x, np.ones((8, 1)), batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_array_equal(np.asarray(generator.state) - before, [0, 4])  # four steps


# Blocks ---------------------------------------------------------------------------------------


def layer_norm(x, layer):
    x = x.astype("float64")
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(layer.gamma) + np.asarray(layer.beta)


def scrambled(layer):
    """The layer, built, with every weight drawn anew: biases and norms matter too."""
    if not layer.built:
        layer.build((None, None, 8))
    for i, variable in enumerate(layer.trainable_variables):
        variable.assign(noise(*variable.shape, seed=i) * 0.4)
    return layer


@pytest.mark.parametrize("layer_scale", [None, 1e-5])
def test_a_block_is_its_formula(layer_scale, close):
    block = scrambled(
        layers.TransformerBlock(8, 2, mlp_dim=12, causal=True, layer_scale=layer_scale)
    )
    factors = [1.0, 1.0]
    if layer_scale:
        factors = [np.asarray(s.gamma) for s in block.attention_scales + block.mlp_scales]
    x = noise(2, 5, 8)
    expected = x + factors[0] * reference_attention(
        block.attention, layer_norm(x, block.attention_norm), causal=True
    )
    (up, up_bias), (down, down_bias) = weight(block.mlp, "up"), weight(block.mlp, "down")
    hidden = layer_norm(expected, block.mlp_norm) @ up + up_bias
    hidden = hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2
    expected = expected + factors[1] * (hidden @ down + down_bias)
    close(run(block, x), expected, ulps=64)


def test_the_mlp_is_four_times_as_wide_unless_told():
    assert layers.TransformerBlock(8, 2).mlp.hidden == 32
    assert layers.TransformerBlock(8, 2, mlp_dim=6).mlp.hidden == 6


def test_layer_scale_begins_at_its_value_under_names_that_do_not_decay():
    block = layers.TransformerBlock(8, 2, layer_scale=0.25)
    block.build((None, None, 8))
    found = {paths.canonical(v.path): v for v in block.variables if "_scale/" in v.path}
    assert set(found) == {"attention_scale/gamma", "mlp_scale/gamma"}
    for variable in found.values():
        np.testing.assert_array_equal(variable, np.full(8, 0.25, "float32"))
    assert all(paths.matches("gamma", path) for path in found)  # which the recipes exempt
    with pytest.raises(ConfigurationError, match="from 0 up"):
        layers.TransformerBlock(8, 2, layer_scale=-1.0)


def test_a_rate_of_0_makes_no_layer_and_no_state():
    block = layers.TransformerBlock(8, 2)
    block.build((None, None, 8))
    assert not block.attention_drops + block.mlp_drops
    assert not block.attention_scales + block.mlp_scales
    assert not block.non_trainable_variables


def test_drop_path_passes_whole_rows_by():
    block = scrambled(layers.TransformerBlock(8, 2, drop_path=0.5))
    x = noise(32, 3, 8)
    with seed_scope(Seed(1)):
        y = run(block, x, training=True)
    untouched = np.all(y == x, axis=(1, 2))
    assert 0 < untouched.sum() < 20  # a quarter: both branches were dropped
    np.testing.assert_array_equal(np.all(y == x, axis=2), untouched[:, None].repeat(3, 1))


def test_dropout_in_a_block_is_off_outside_training():
    block = scrambled(layers.TransformerBlock(8, 2, dropout=0.5, drop_path=0.5))
    plain = layers.TransformerBlock(8, 2)
    plain.build((None, None, 8))
    for variable, like in zip(plain.variables, block.trainable_variables, strict=True):
        variable.assign(like)
    x = noise(2, 3, 8)
    with seed_scope(Seed(1)):
        np.testing.assert_array_equal(run(block, x), run(plain, x))
        assert not np.array_equal(run(block, x, training=True), run(plain, x))


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dropout(0.2, noise_shape=(None, 1, 1), seed=3, name="drop"),
        layers.Attention(8, 2, causal=True, impl="fused", name="attention"),
        layers.MLP(8, 12, activation="quick_gelu", dtype="mixed_bfloat16", name="mlp"),
        layers.TransformerBlock(
            8,
            4,
            mlp_dim=6,
            causal=True,
            activation="gelu",
            dropout=0.1,
            drop_path=0.2,
            impl="einsum",
            layer_scale=0.1,
        ),
        layers.LayerScale(8, 0.1, name="scale"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_config_tells_everything(layer):
    again = rebuilt(layer)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    arguments = type(layer).__init__.__code__.co_varnames[
        1 : type(layer).__init__.__code__.co_argcount
    ]
    assert set(arguments) <= layer.get_config().keys()


def test_a_keras_model_of_flipkits_layers_is_the_same_after_saving(tmp_path):
    image = keras.Input((8, 8, 3))
    tower = flipkit.ViT(8, 4, dim=8, depth=1, heads=2, dropout=0.1, name="tower")
    x = keras.layers.Reshape((2, 8))(keras.layers.Dense(16)(tower(image)))
    x = layers.TransformerBlock(8, 2, drop_path=0.1)(x)
    model = keras.Model(image, layers.Attention(8, 2)(x))
    scrambled(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = noise(3, 8, 8, 3)
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert [v.shape for v in again.variables] == [v.shape for v in model.variables]
