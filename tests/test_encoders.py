import json

import jax
import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import encoders, layers, paths
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.random import Seed, initial_values, seed_scope

SMALL = {"dim": 16, "depth": 1, "heads": 2}


def vit(**changes):
    """A tower of 16 patches, built and scrambled: positions, norms and biases matter too."""
    return scrambled(flipkit.ViT(**{"image_size": 16, "patch_size": 4, **SMALL, **changes}))


def text_tower(**changes):
    return scrambled(flipkit.TextTransformer(**{"vocab": 32, "length": 6, **SMALL, **changes}))


def scrambled(layer):
    layer.build()
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.4)
    return layer


def like(layer, other):
    """`layer` with the weights of `other`."""
    layer.build()
    for variable, value in zip(layer.variables, other.variables, strict=True):
        variable.assign(value)
    return layer


programs = {}


def run(layer, x, **kwargs):
    """The layer's output, by a compiled program that serves every layer of the same config."""
    key = type(layer), str(layer.get_config())
    if key not in programs:
        programs[key] = jax.jit(
            lambda weights, others, x, kwargs: layer.stateless_call(weights, others, x, **kwargs)[0]
        )
    weights, others = (
        [v.value for v in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    )
    return np.asarray(programs[key](weights, others, x, kwargs))


def tokens(layer, *args, **kwargs):
    """What the final norm gives, before the pooling."""
    seen = {}
    norm = type(layer.norm).call

    def call(x):
        seen["tokens"] = norm(layer.norm, x)
        return seen["tokens"]

    def traced(*args):
        seen["pooled"] = layer(*args, **kwargs)
        return seen

    layer.norm.call = call
    try:
        found = jax.jit(traced)(*args)
    finally:
        del layer.norm.call
    return np.asarray(found["tokens"]), np.asarray(found["pooled"])


def images(batch=3, height=16, width=16):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype("float32")


TEXT = np.array([[5, 9, 31, 2, 0, 0], [7, 1, 0, 0, 0, 0], [3, 30, 4, 8, 12, 30]], "int32")
IDS = np.array([[0, 3, 7, 15], [1, 2, 3, 4], [5, 9, 10, 14]], "int32")


@pytest.fixture(scope="module")
def tower():
    return vit()


@pytest.fixture(scope="module")
def texts():
    return text_tower()


# The image tower ------------------------------------------------------------------------------


def test_vit_is_its_parts_put_together(tower, close):
    x = images()
    patches = np.asarray(layers.patchify(x, 4), "float64")
    embedded = patches @ np.asarray(tower.patch_embed.kernel) + np.asarray(tower.patch_embed.bias)
    embedded = embedded + layers.sincos_positions((4, 4), 16)
    # The class token gets no position.
    token = np.broadcast_to(np.asarray(tower.token), (3, 1, 16))
    hidden = np.concatenate([token, embedded], axis=1).astype("float32")
    expected = run(tower.norm, run(tower.blocks[0], hidden))
    found, pooled = tokens(tower, x)
    close(found, expected, ulps=64)
    close(pooled, expected.mean(axis=1), ulps=64)


def test_ids_select_patches_of_an_image(tower, close):
    x = images()
    patches = np.take_along_axis(np.asarray(layers.patchify(x, 4)), IDS[..., None], axis=1)
    close(run(tower, x, ids=IDS), run(tower, patches, ids=IDS))


def test_all_ids_are_no_ids(tower, close):
    every = np.tile(np.arange(16, dtype="int32"), (3, 1))
    close(run(tower, images(), ids=every), run(tower, images()))


def test_patches_without_ids_are_all_patches(tower, close):
    patches = np.asarray(layers.patchify(images(), 4))
    close(run(tower, patches), run(tower, images()))


def test_the_order_of_ids_does_not_matter_but_their_positions_do(tower, close):
    found = run(tower, images(), ids=IDS)
    close(run(tower, images(), ids=IDS[:, ::-1].copy()), found, ulps=64)
    patches = np.take_along_axis(np.asarray(layers.patchify(images(), 4)), IDS[..., None], axis=1)
    moved = run(tower, patches, ids=(IDS + 1) % 16)
    assert np.abs(moved - found).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "pooling"),
    [
        ({"pool": "mean"}, lambda t: t.mean(axis=1)),
        ({"pool": "mean_patches"}, lambda t: t[:, 1:].mean(axis=1)),
        ({"pool": "class"}, lambda t: t[:, 0]),
        ({"pool": "mean", "class_token": False}, lambda t: t.mean(axis=1)),
        ({"pool": "mean_patches", "class_token": False}, lambda t: t.mean(axis=1)),
        ({"pool": "class", "class_position": True, "positions": "learned"}, lambda t: t[:, 0]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_pools_of_the_image_tower_by_name(changes, pooling, close):
    layer = vit(**changes)
    found, pooled = tokens(layer, images(), ids=IDS)
    assert found.shape == (3, 4 + layer.class_token, 16)
    close(pooled, pooling(found))


def test_norm_after_the_pool_sees_the_pooled_token_alone(close):
    layer = vit(final_norm="after_pool", pool="mean_patches")
    found, pooled = tokens(layer, images())
    assert found.shape == pooled.shape == (3, 16)
    np.testing.assert_array_equal(found, pooled)
    before = like(flipkit.ViT(16, 4, **SMALL, pool="mean_patches"), layer)
    assert np.abs(run(before, images()) - pooled).max() > 1e-3
    # On one token alone both are the same.
    first, second = (
        run(vit(final_norm=place, pool="class"), images())
        for place in ("after_pool", "before_pool")
    )
    close(first, second, ulps=64)


def test_a_norm_before_the_blocks_takes_away_the_scale_of_what_comes_in(close):
    layer = vit(pre_norm=True, positions="learned", class_token=False, patch_bias=False)
    assert layer.first_norm.gamma.path == "image/pre_norm/gamma"
    assert not layer.patch_embed.use_bias
    found = run(layer, images())
    for variable in (layer.patch_embed.kernel, layer.position):
        variable.assign(np.asarray(variable) * 8)
    close(run(layer, images()), found, ulps=256)


def test_the_class_token_may_have_a_position_the_first_row(close):
    layer = vit(class_position=True, positions="learned", pool="class")
    assert layer.position.shape == (17, 16)
    bare = vit(positions="learned", pool="class")
    rest = [variable for variable in layer.variables if variable is not layer.position]
    others = [variable for variable in bare.variables if variable is not bare.position]
    for variable, value in zip(others, rest, strict=True):
        variable.assign(value)
    bare.token.assign(np.asarray(layer.token) + np.asarray(layer.position)[0])
    bare.position.assign(np.asarray(layer.position)[1:])
    for ids in (None, IDS):
        close(run(layer, images(), ids=ids), run(bare, images(), ids=ids))


def test_the_attention_pool_is_its_formula(close):
    layer = vit(pool="map", class_token=False, mlp_dim=24)
    pool = layer.attention_pool
    found, pooled = tokens(layer, images())
    assert pool.probe.path == "image/pool/probe"
    heads = []
    query, key, value = (
        (x @ np.asarray(part.kernel) + np.asarray(part.bias)).reshape(x.shape[0], -1, 2, 8)
        for x, part in (
            (np.asarray(pool.probe, "float64"), pool.attention.query),
            (found.astype("float64"), pool.attention.key),
            (found.astype("float64"), pool.attention.value),
        )
    )
    for head in range(2):
        scores = np.einsum("d,btd->bt", query[0, 0, head], key[:, :, head]) / np.sqrt(8)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        heads.append(np.einsum("bt,btd->bd", weights, value[:, :, head]))
    out = pool.attention.out
    x = np.concatenate(heads, axis=1) @ np.asarray(out.kernel) + np.asarray(out.bias)
    normed = run(pool.norm, x.astype("float32")[:, None])
    expected = x + run(pool.mlp, normed)[:, 0]
    close(pooled, expected, ulps=64)
    assert pool.mlp.hidden == 24


def test_a_towers_epsilon_reaches_all_its_norms():
    layer = vit(norm_epsilon=1e-3, pre_norm=True, pool="map")
    assert {part.epsilon for part in layer._flatten_layers() if "norm" in part.name} == {1e-3}
    texts = text_tower(norm_epsilon=1e-4)
    assert {part.epsilon for part in texts._flatten_layers() if "norm" in part.name} == {1e-4}


def test_learned_positions_are_a_variable_for_each_patch():
    layer = vit(positions="learned", class_token=False)
    assert layer.position.path == "image/position"
    assert layer.position.shape == (16, 16)
    x = images()
    found = run(layer, x, ids=IDS)
    layer.position.assign(np.asarray(layer.position) + (np.arange(16) == 8)[:, None])
    np.testing.assert_array_equal(run(layer, x, ids=IDS), found)  # nobody saw patch 8
    layer.position.assign(np.asarray(layer.position) + (np.arange(16) == 7)[:, None])
    changed = np.any(run(layer, x, ids=IDS) != found, axis=1)
    np.testing.assert_array_equal(changed, np.any(IDS == 7, axis=1))


def test_images_may_be_taller_than_wide(close):
    layer = vit(image_size=(16, 8))
    assert layer.grid == (4, 2)
    assert layer.patches == 8
    x = images(height=16, width=8)
    np.testing.assert_array_equal(layer.position, layers.sincos_positions((4, 2), 16))
    patches = np.asarray(layers.patchify(x, 4))
    close(run(layer, x), run(layer, patches))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_picture_of_another_size_has_resampled_positions(positions, close):
    layer = vit(positions=positions, class_position=positions == "learned")
    smaller = vit(image_size=(8, 12), positions="learned", class_position=positions == "learned")
    own = np.asarray(layer.position)
    first, table = own[: len(own) - 16], own[len(own) - 16 :]
    table = layers.resample_positions(table, (4, 4), (2, 3))
    for variable in smaller.variables:
        if variable.name != "position":
            variable.assign(next(v for v in layer.variables if v.path == variable.path))
    smaller.position.assign(np.concatenate([first, table]))
    x = images(height=8, width=12)
    expected = np.asarray(smaller(x))
    close(np.asarray(layer(x, grid=(2, 3))), expected, ulps=64)
    ids = np.array([[0, 4], [1, 2], [3, 5]], "int32")
    close(np.asarray(layer(x, ids=ids, grid=(2, 3))), np.asarray(smaller(x, ids=ids)), ulps=64)


def test_learned_positions_of_another_grid_get_a_gradient():
    layer, x = vit(positions="learned"), images(height=8, width=8)

    def total(weights):
        features, _ = layer.stateless_call(weights, [], x, grid=(2, 2))
        return ops.sum(features**2)

    gradients = jax.grad(total)([v.value for v in layer.trainable_variables])
    names = [v.name for v in layer.trainable_variables]
    assert (np.abs(gradients[names.index("position")]).max(axis=1) > 0).all()


def test_it_sees_where_a_patch_is(tower):
    x = images(1)
    other = np.roll(x, 4, axis=2)
    assert np.abs(run(tower, x) - run(tower, other)).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30, "patch_size": 4}, r"divisible by the patch size.*\[28, 32\]"),
        ({"image_size": (32, 30), "patch_size": 4}, r"image_size=\(32, 30\).*\[28, 32\]"),
        ({"pool": "cls"}, "'class'"),
        ({"positions": "sincoss"}, "'sincos'"),
        ({"final_norm": "after"}, "'after_pool'"),
        ({"class_position": True}, 'positions="learned"'),
        ({"pool": "class", "class_token": False}, "class_token=True"),
        ({"dim": 6}, "divisible by 4"),
        ({"dim": 12, "heads": 5}, "heads=5"),
        ({"activation": "gelu_tan"}, "'gelu_tanh'"),
        ({"impl": "flash"}, "impl='flash'"),
        ({"remat": "blok"}, "remat='blok'. Did you mean 'block'"),
        ({"remat": 1}, "remat=1"),
    ],
)
def test_vit_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        flipkit.ViT(**{"image_size": 16, "patch_size": 4, **SMALL, **arguments})


def test_drop_path_grows_with_depth():
    layer = flipkit.ViT(16, 4, dim=16, depth=3, heads=2, drop_path=0.2)
    assert [block.drop_path for block in layer.blocks] == pytest.approx([0, 0.1, 0.2])
    assert not layer.blocks[0].attention_drops


# The text tower -------------------------------------------------------------------------------


def test_the_text_tower_is_its_parts_put_together(texts, close):
    hidden = np.asarray(texts.table)[TEXT] + np.asarray(texts.position)
    expected = run(texts.norm, run(texts.blocks[0], hidden))
    found, pooled = tokens(texts, TEXT)
    close(found, expected, ulps=64)
    close(pooled, expected[:, 0], ulps=64)


@pytest.mark.parametrize(
    ("changes", "pooling"),
    [
        ({"pool": "first"}, lambda t: t[:, 0]),
        ({"pool": "last"}, lambda t: t[:, -1]),
        ({"pool": "eos"}, lambda t: t[[0, 1, 2], [2, 0, 1]]),  # the largest id, at first
        ({"pool": "eos", "eos": 30}, lambda t: t[[0, 1, 2], [0, 0, 1]]),  # the first 30, or 0
        (
            {"pool": "mean"},
            lambda t: np.stack([t[0, :4].mean(0), t[1, :2].mean(0), t[2].mean(0)]),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_pools_of_the_text_tower_by_name(texts, changes, pooling, close):
    layer = like(flipkit.TextTransformer(32, 6, **SMALL, **changes), texts)
    found, pooled = tokens(layer, TEXT)
    close(pooled, pooling(found))


def test_a_text_without_words_is_pooled_to_zeros(texts):
    layer = like(flipkit.TextTransformer(32, 6, **SMALL, pool="mean"), texts)
    np.testing.assert_array_equal(run(layer, np.zeros((2, 6), "int32")), 0)


def test_padding_is_seen_unless_it_is_masked(texts, close):
    other = np.where(TEXT == 0, 20, TEXT)
    other[2] = TEXT[2]
    padded = [0, 1]
    assert np.all(run(texts, TEXT)[padded] != run(texts, other)[padded])
    masking = like(flipkit.TextTransformer(32, 6, **SMALL, mask_padding=True), texts)
    moved = np.array(masking.table)
    before = run(masking, TEXT)
    moved[0] += 1  # what padding looks like
    masking.table.assign(moved)
    close(run(masking, TEXT), before)
    close(before[2], run(texts, TEXT)[2], ulps=64)  # it has no padding


def test_padding_may_have_another_id(texts, close):
    swap = np.array([1, 0, *range(2, 32)])  # 0 is a word now, and 1 padding
    for options in ({"mask_padding": True}, {"pool": "mean"}):
        plain = like(flipkit.TextTransformer(32, 6, **SMALL, **options), texts)
        other = like(flipkit.TextTransformer(32, 6, **SMALL, **options, padding=1), texts)
        other.table.assign(np.asarray(texts.table)[swap])
        found = run(other, swap[TEXT].astype("int32"))
        close(found, run(plain, TEXT))


def test_a_later_token_changes_nothing_before_it_if_causal(texts, close):
    other = TEXT.copy()
    other[:, 4:] = 11
    causal = like(flipkit.TextTransformer(32, 6, **SMALL, causal=True), texts)
    before, after = (tokens(causal, ids)[0] for ids in (TEXT, other))
    close(after[:, :4], before[:, :4])
    assert np.abs(after[:, 4:] - before[:, 4:]).max() > 1e-3
    assert np.abs(run(texts, other) - run(texts, TEXT)).max() > 1e-3


def test_a_causal_eos_pool_ignores_what_follows(texts, close):
    causal = like(flipkit.TextTransformer(32, 6, **SMALL, causal=True, pool="eos", eos=2), texts)
    text = np.array([[5, 9, 2, 0, 0, 0], [5, 9, 2, 8, 2, 7]], "int32")
    first, second = run(causal, text)
    close(first, second)


def test_keep_selects_tokens_with_their_positions(texts, close):
    keep = np.array([[0, 2, 3], [0, 1, 4], [1, 2, 5]], "int32")
    hidden = np.asarray(texts.table)[TEXT] + np.asarray(texts.position)
    hidden = np.take_along_axis(hidden, keep[..., None], axis=1)
    found, _ = tokens(texts, TEXT, keep=keep)
    expected = run(texts.norm, run(texts.blocks[0], hidden))
    close(found, expected, ulps=64)
    every = np.tile(np.arange(6, dtype="int32"), (3, 1))
    close(run(texts, TEXT, keep=every), run(texts, TEXT))


@pytest.mark.parametrize("eos", [None, 30])
def test_the_end_that_is_pooled_is_kept_whatever_the_masker_says(texts, eos, close):
    tower = like(flipkit.TextTransformer(32, 6, **SMALL, pool="eos", eos=eos), texts)
    text = np.array([[5, 9, 8, 30, 0, 0], [30, 9, 8, 2, 3, 0], [5, 9, 8, 7, 2, 30]], "int32")
    without = np.array([[0, 1, 4], [2, 3, 5], [1, 2, 4]], "int32")
    holding = np.array([[0, 1, 3], [0, 2, 3], [1, 2, 5]], "int32")
    kept = run(tower, text, keep=holding)
    np.testing.assert_array_equal(run(tower, text, keep=without), kept)
    hidden, _ = tokens(texts, text, keep=holding)
    close(kept, hidden[[0, 1, 2], [2, 0, 2]], ulps=64)


def test_masked_padding_stays_masked_among_kept_tokens(texts, close):
    masking = like(flipkit.TextTransformer(32, 6, **SMALL, mask_padding=True, pool="mean"), texts)
    text = np.array([[5, 9, 0, 0, 0, 0]], "int32")
    few, many = (np.array([ids], "int32") for ids in ([0, 1], [0, 1, 4, 5]))
    close(run(masking, text, keep=many), run(masking, text, keep=few))


def test_a_text_may_be_shorter_than_the_longest(texts, close):
    found, _ = tokens(texts, TEXT[:, :4])
    assert found.shape == (3, 4, 16)
    hidden = np.asarray(texts.table)[TEXT[:, :4]] + np.asarray(texts.position)[:4]
    expected = run(texts.norm, run(texts.blocks[0], hidden))
    close(found, expected, ulps=64)


def test_an_unknown_pool_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="'first'"):
        flipkit.TextTransformer(32, 6, **SMALL, pool="frist")


# Both -----------------------------------------------------------------------------------------


def loss_and_gradient(layer, x, seed):
    def loss(values):
        weights = zip(layer.trainable_variables, values, strict=True)
        with keras.StatelessScope(state_mapping=list(weights)), seed_scope(seed):
            return ops.sum(ops.square(layer(x, training=True)))

    return jax.jit(jax.value_and_grad(loss))([v.value for v in layer.trainable_variables])


@pytest.mark.parametrize("remat", ["dots", "block"])
def test_remat_gives_the_same_loss_and_gradients(remat):
    plain = vit(dropout=0.2)
    again = like(flipkit.ViT(16, 4, **SMALL, dropout=0.2, remat=remat), plain)
    x, seed = images(2), Seed(1)
    loss, gradients = loss_and_gradient(plain, x, seed)
    loss_again, gradients_again = loss_and_gradient(again, x, seed)
    np.testing.assert_allclose(loss_again, loss, rtol=1e-6)
    for one, other in zip(gradients, gradients_again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def kept_for_the_backward_pass(**changes):
    """Shapes of what a training pass of a tower keeps for its backward pass, and their bytes."""
    layer = flipkit.ViT(16, 4, **{**SMALL, "depth": 2, "impl": "einsum", **changes})
    layer.build()
    values = [v.value for v in layer.trainable_variables]

    def call(values):
        with keras.StatelessScope(
            state_mapping=list(zip(layer.trainable_variables, values, strict=True))
        ):
            return ops.sum(layer(images(2), training=True))

    kept = jax.tree.leaves(jax.eval_shape(lambda w: jax.vjp(call, w)[1], values))
    return {v.shape for v in kept}, sum(v.size * v.dtype.itemsize for v in kept)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan):
    none, dots, block = (
        kept_for_the_backward_pass(remat=remat, scan=scan) for remat in ("none", "dots", "block")
    )
    assert block[1] < dots[1] < none[1]
    scores = (2, 2, 2, 17, 17) if scan else (2, 2, 17, 17)  # (batch, heads, tokens, tokens)
    assert scores in none[0]
    assert scores not in dots[0] | block[0]
    assert ((2, 34, 64) if scan else (34, 64)) in dots[0]  # the MLP's hidden units, before GELU


@pytest.mark.parametrize(("old", "new"), [(True, "block"), (False, "none"), (None, "none")])
def test_remat_may_be_what_older_configs_hold(old, new):
    tower = flipkit.ViT(16, 4, **SMALL, remat=old)
    assert tower.remat == tower.get_config()["remat"] == new


def test_initial_values_are_flips():
    layer = flipkit.ViT(32, 8, dim=64, depth=1, heads=4)
    with initial_values(layer, 0):
        layer.build()
    found = {v.path.removeprefix("image/"): np.asarray(v) for v in layer.variables}

    def uniform(x, limit):
        return 0.95 * limit < abs(x).max() <= limit and abs(x.std() * 3**0.5 / limit - 1) < 0.05

    for name in ("query", "key", "value"):  # Glorot on the fused kernel (64, 3 * 64)
        kernel = found[f"block_00/attention/{name}/kernel"]
        assert uniform(kernel, np.sqrt(6 / (64 + 3 * 64))), name
    assert uniform(found["block_00/attention/out/kernel"], np.sqrt(6 / 128))
    assert uniform(found["block_00/mlp/up/kernel"], np.sqrt(6 / 320))
    assert uniform(found["block_00/mlp/down/kernel"], np.sqrt(6 / 320))
    assert uniform(found["patch_embed/kernel"], np.sqrt(6 / (192 + 64)))
    assert found["class_token"].std() == pytest.approx(0.02, rel=0.3)
    for path, value in found.items():
        if path.endswith(("bias", "beta")):
            assert not value.any(), path
        if path.endswith("gamma"):
            assert np.all(value == 1), path


@pytest.mark.parametrize("layer", [vit(), text_tower()], ids=["image", "text"])
def test_each_pattern_of_the_layout_matches_matrices_of_its_rank(layer):
    shapes = {paths.canonical(v.path): v.shape for v in layer.variables}
    for pattern, axes in layer.layout():
        chosen = [shape for path, shape in shapes.items() if paths.matches(pattern, path)]
        assert chosen, pattern
        assert all(len(shape) == len(axes) for shape in chosen)


@pytest.mark.parametrize(
    "layer",
    [
        flipkit.ViT(
            (16, 8), 4, 16, 2, 2, positions="learned", class_token=False, pool="mean_patches",
            mlp_dim=8, activation="gelu", dropout=0.1, drop_path=0.2, impl="fused", remat="dots",
        ),
        flipkit.TextTransformer(
            9, 4, 16, 1, 4, causal=True, pool="eos", eos=3, mask_padding=True, mlp_dim=8,
            activation="quick_gelu", dropout=0.1, drop_path=0.2, impl="einsum", remat="block",
            scan=True,
            dtype="mixed_bfloat16", name="words",
        ),
    ],
    ids=["image", "text"],
)  # fmt: skip
def test_the_config_tells_everything(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = encoders.get(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


def test_towers_work_in_functional_keras_models(tower, texts, close):
    x, ids = keras.Input((16, 16, 3)), keras.Input((4,), dtype="int32")
    model = keras.Model([x, ids], tower(x, ids=ids))
    assert model.output.shape == (None, 16)
    close(model.predict([images(), IDS], verbose=0), run(tower, images(), ids=IDS), ulps=64)
    text, keep = keras.Input((6,), dtype="int32"), keras.Input((3,), dtype="int32")
    assert keras.Model([text, keep], texts(text, keep=keep)).output.shape == (None, 16)


def test_a_tower_with_dropout_and_remat_trains_in_a_plain_keras_model():
    tower = flipkit.ViT(16, 4, **SMALL, dropout=0.1, remat="block")
    model = keras.Sequential([keras.Input((16, 16, 3)), tower, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(images(4), np.ones((4, 1)), batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_bfloat16_towers_give_bfloat16_features_and_keep_float32_weights():
    for layer, x in ((flipkit.ViT, images(2)), (flipkit.TextTransformer, TEXT)):
        sizes = (
            {"image_size": 16, "patch_size": 4}
            if layer is flipkit.ViT
            else {"vocab": 32, "length": 6}
        )
        plain = scrambled(layer(**sizes, **SMALL))
        half = like(layer(**sizes, **SMALL, dtype="mixed_bfloat16"), plain)
        found = run(half, x)
        assert found.dtype == "bfloat16"
        assert {v.dtype for v in half.trainable_variables} == {"float32"}
        np.testing.assert_allclose(found.astype("float32"), run(plain, x), atol=0.1)


def test_a_shape_only_copy_counts_what_the_tower_learns(tower):
    copy = encoders.shape_only(tower)
    assert encoders.weights(copy) == encoders.weights(tower)
    assert encoders.weights(tower) == sum(np.size(v) for v in tower.trainable_variables)


def test_an_encoder_is_named_made_or_given(tower):
    assert encoders.get(tower) is tower
    assert type(encoders.get("vit")) is flipkit.ViT
    assert type(encoders.get("text_transformer")) is flipkit.TextTransformer
    with pytest.raises(UnknownName, match="'vit'"):
        encoders.get("vti")


def test_counting_leaves_no_variables_that_the_next_model_would_fill(tiny):
    counted = encoders.shape_only(tiny().image)
    tiny().build()
    assert all(variable._value is None for variable in counted.variables)
    assert encoders.weights(counted) > 0
