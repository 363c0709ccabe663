"""A tower's blocks as one scan: the same numbers from the same variables, and a short program."""

import json

import jax
import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import layers, optimizers
from flipkit.errors import ConfigurationError
from flipkit.layers import stack
from flipkit.paths import canonical
from flipkit.planning import Towers
from flipkit.random import Seed, seed_scope

DEEP = {"dim": 16, "depth": 3, "heads": 2}
NONE, DROPS = {}, {"dropout": 0.2, "drop_path": 0.3}
TEXT = np.array([[5, 9, 31, 2, 0, 0], [7, 1, 0, 0, 0, 0], [3, 30, 4, 8, 12, 30]], "int32")


def vit(**changes):
    return scrambled(flipkit.ViT(**{"image_size": 16, "patch_size": 4, **DEEP, **changes}))


def texts(**changes):
    return scrambled(flipkit.TextTransformer(**{"vocab": 32, "length": 6, **DEEP, **changes}))


def scrambled(tower):
    """The tower, built, with weights that differ from block to block."""
    tower.build()
    rng = np.random.default_rng(0)
    for variable in tower.weights:
        variable.assign(1.0 * ("gamma" in variable.path) + rng.normal(size=variable.shape) * 0.2)
    return tower


def images(batch=3):
    return np.random.default_rng(1).normal(size=(batch, 16, 16, 3)).astype("float32")


def loss_and_gradient(tower, x=None, seed=None, **call):
    """The features in training, and {path: gradient} of a loss of them."""
    learned = tower.trainable_variables
    x = images() if x is None else x

    def loss(values):
        state = list(zip(learned, values, strict=True))
        with keras.StatelessScope(state_mapping=state), seed_scope(seed or Seed(1, 2)):
            features = tower(x, training=True, **call)
        return ops.sum(ops.square(ops.cast(features, "float32"))), features

    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, features), gradient = program([v.value for v in learned])
    paths = [canonical(v.path) for v in learned]
    return np.asarray(features, "float32"), dict(zip(paths, map(np.asarray, gradient), strict=True))


def compare(found, expected, rtol=1e-6):
    """Checks features and gradients, each beside the largest element of the features or of any gradient."""
    assert np.abs(found[0] - expected[0]).max() <= rtol * np.abs(expected[0]).max()
    assert found[1].keys() == expected[1].keys()
    largest = max(np.abs(gradient).max() for gradient in expected[1].values())
    for path, gradient in expected[1].items():
        assert np.abs(found[1][path] - gradient).max() <= rtol * largest, path


# The same numbers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected():
    """Features and gradients of a tower without a scan, with dropout and without."""
    return {len(drops): loss_and_gradient(vit(**drops)) for drops in (NONE, DROPS)}


@pytest.mark.parametrize("drops", [NONE, DROPS], ids=["whole", "dropping"])
@pytest.mark.parametrize("remat", stack.REMATS)
def test_a_scanned_tower_is_the_tower(expected, remat, drops):
    tower = vit(scan=True, remat=remat, **drops)
    compare(loss_and_gradient(tower), expected[len(drops)])


def test_a_scanned_text_tower_hides_padding():
    options = {"mask_padding": True, "layer_scale": 0.5, "causal": True, "pool": "mean"}
    plain, scanned = (loss_and_gradient(texts(**options, scan=s), TEXT) for s in (False, True))
    compare(scanned, plain)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_scanned_tower_in_bfloat16(remat):
    options = {"dtype": "mixed_bfloat16", "remat": remat, **DROPS}
    plain, scanned = (loss_and_gradient(vit(**options, scan=s)) for s in (False, True))
    assert {gradient.dtype for gradient in scanned[1].values()} == {np.dtype("float32")}
    compare(scanned, plain, rtol=2e-2)  # XLA rounds where it fuses differently


def test_it_reads_what_a_layer_of_another_dtype_needs():
    """A tower called outside its `call`, as a masker does, where Keras casts to no dtype of the tower."""
    plain, scanned = (vit(dtype="mixed_bfloat16", scan=scan) for scan in (False, True))
    for tower in (plain, scanned):
        for block in tower.blocks:
            block.mlp_norm.dtype_policy = keras.DTypePolicy("float32")
    found, wanted = (np.asarray(t.tokens(images()), "float32") for t in (scanned, plain))
    np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())


def masks(tower):
    """What each Dropout of each block keeps, in the order of their calls: (rows, ...) of bool."""
    seen = []

    def call(layer, x, training=False):
        found = layers.Dropout.call(layer, ops.ones_like(x), training=training)
        jax.debug.callback(lambda kept: seen.append(np.asarray(kept) != 0), found, ordered=True)
        return x * found

    for layer in tower._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.call = lambda x, training=False, layer=layer: call(layer, x, training)
    with seed_scope(Seed(1, 2)):
        tower(images(), training=True)
    jax.effects_barrier()
    return seen


def test_each_block_drops_what_it_drops_without_a_scan():
    plain, scanned = (masks(vit(scan=scan, **DROPS)) for scan in (False, True))
    first = [
        np.ones((3, 17, 16), bool)
    ] * 2  # the first block's stochastic depth, which has the rate 0
    plain = [plain[0], first[0], plain[1], first[1], *plain[2:]]
    assert len(plain) == len(scanned) == 3 * 4
    for one, other in zip(plain, scanned, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({mask.tobytes() for mask in plain[4::2]}) == 4  # blocks differ from each other


def test_nothing_is_dropped_outside_training():
    tower, plain = (vit(scan=True, **drops) for drops in (DROPS, {}))
    before = [np.asarray(v) for v in tower.variables if "generator" in v.path]
    np.testing.assert_array_equal(tower(images()), plain(images()))
    after = [np.asarray(v) for v in tower.variables if "generator" in v.path]
    np.testing.assert_array_equal(before, after)


def test_outside_a_seed_scope_each_step_drops_others():
    tower = vit(scan=True, dropout=0.5)
    first, second = (np.asarray(tower(images(), training=True)) for _ in range(2))
    assert not np.array_equal(first, second)


# What else reads the blocks -------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_the_attention_to_patches_is_that_of_the_tower(pool, close):
    plain, scanned = (vit(pool=pool, scan=scan) for scan in (False, True))
    close(np.asarray(scanned.scores(images())), np.asarray(plain.scores(images())), ulps=64)


class Watching(flipkit.Masker):
    """Keeps the patches that the model's own tower attends to most."""

    needs = "tower"

    def prepare(self, model):
        object.__setattr__(self, "tower", model.image)

    def call(self, x, keep, *, grid, seed):
        scores = self.tower.scores(ops.cast(x, "float32") / 255 - 0.5)
        return ops.sort(ops.cast(ops.argsort(-scores, axis=1)[:, :keep], "int32"), axis=1)


def gradients(model, batch):
    """The loss and gradients of a FLIP's first step."""
    model.compile("sgd")
    names = ("trainable_variables", "non_trainable_variables", "metrics_variables")
    values = [[v.value for v in getattr(model, name)] for name in names]

    def step(values):
        given = {"training": True, "optimizer_variables": []}
        (loss, _), gradient = model.loss_and_gradient()(*values, batch, None, None, **given)
        return loss, gradient

    loss, found = jax.jit(step)(values)
    paths = [canonical(v.path) for v in model.trainable_variables]
    return np.asarray(loss), dict(zip(paths, map(np.asarray, found), strict=True))


def flip(tiny, scan, remat="none", **changes):
    tower = {"depth": 2, "scan": scan, "remat": remat, **DROPS}
    return tiny(tower, seed=1, mask_ratio=0.5, **changes)


@pytest.mark.parametrize("masker", [Watching, lambda: "random"], ids=["tower", "reconstruction"])
def test_a_masker_and_a_decoder_see_the_same_tower(tiny, pairs, masker):
    decoder = {"reconstruction": flipkit.MAEDecoder(16, 1, 2)} if masker is not Watching else {}
    models = [flip(tiny, scan, masker=masker(), **decoder) for scan in (False, True)]
    plain, scanned = (gradients(model, pairs(4)) for model in models)
    compare(scanned, plain)


def test_frozen_blocks_have_no_gradient_and_the_others_have_theirs(tiny, pairs):
    frozen = {"frozen": ["image/block_00", "image/block_01/mlp"]}
    models = [flip(tiny, scan, **frozen) for scan in (False, True)]
    plain, scanned = (gradients(model, pairs(4)) for model in models)
    assert "image/block_01/attention/out/kernel" in scanned[1]
    assert not any(path.startswith("image/block_00") for path in scanned[1])
    compare(scanned, plain)


# Variables keep their names -------------------------------------------------------------------


def test_variables_are_the_blocks_own_and_layer_decay_finds_them(tiny, pairs):
    ends = []
    for scan in (False, True):
        model = flip(tiny, scan)
        rates = optimizers.layer_decay(model.image, 0.5)
        model.compile(flipkit.AdamW(1e-3, epsilon=1e-3, rate_scale=rates, no_decay=["bias"]))
        model.fit(pairs(8), batch_size=4, epochs=2, shuffle=False, verbose=0)
        ends.append({canonical(v.path): np.asarray(v) for v in model.variables})
    assert "image/block_01/mlp/up/kernel" in ends[1]
    assert ends[0].keys() == ends[1].keys()
    for path, value in ends[0].items():
        np.testing.assert_allclose(ends[1][path], value, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("scan", [False, True])
def test_a_file_of_either_is_read_by_the_other(tiny, pairs, scan, tmp_path, close):
    model, other = flip(tiny, scan), flip(tiny, not scan)
    for one in (model, other):
        one.build()
    for variable in model.trainable_variables:
        variable.assign(variable + 0.01)
    model.save(tmp_path / "model.keras")
    again = flipkit.load_model(tmp_path / "model.keras")
    assert again.image.scan is scan
    other.load_weights(tmp_path / "model.keras")
    expected = model.predict(pairs(), verbose=0)
    for name, found in again.predict(pairs(), verbose=0).items():
        np.testing.assert_array_equal(found, expected[name])
    for name, found in other.predict(pairs(), verbose=0).items():
        close(found, expected[name])


@pytest.mark.slow
def test_lora_and_int8_weights_are_stacked_too(close):
    plain, scanned = vit(), vit(scan=True)
    for tower in (plain, scanned):
        for block in tower.blocks:
            block.attention.query.enable_lora(2)
            block.attention.query.lora_kernel_a.assign(np.full((16, 2), 0.1))
            block.attention.query.lora_kernel_b.assign(np.full((2, 16), 0.1))
    compare(loss_and_gradient(scanned), loss_and_gradient(plain))
    scanned.blocks[0].attention.value.enable_lora(2)
    with pytest.raises(ConfigurationError, match="block_01 differs from block_00"):
        scanned(images())
    plain, scanned = vit(), vit(scan=True)
    for tower in (plain, scanned):
        for block in tower.blocks:
            block.mlp.up.quantize("int8")
    assert "int8" in {v.dtype for v in scanned.blocks[0].mlp.up.weights}
    close(np.asarray(scanned(images())), np.asarray(plain(images())), ulps=64)


DEVICES = """
import keras
import numpy as np
import flipkit

keras.distribution.set_distribution(keras.distribution.DataParallel())
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), "uint8"),
    "text": rng.integers(1, 32, (16, 6), "int32"),
}
for scan in (False, True):
    tower = {"dim": 16, "depth": 2, "heads": 2, "dropout": 0.2, "drop_path": 0.3, "scan": scan}
    image, text = flipkit.ViT(16, 4, **tower), flipkit.TextTransformer(32, 6, 16, 1, 2)
    model = flipkit.FLIP(image, text, dim=8, seed=1, mask_ratio=0.5)
    model.compile(flipkit.AdamW(1e-3, epsilon=1e-3))
    print(*model.fit(batch, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"])
"""


@pytest.mark.slow
def test_it_is_the_same_on_eight_devices(fresh):
    plain, scanned = (line.split() for line in fresh(DEVICES, devices=8).splitlines()[-2:])
    np.testing.assert_allclose(list(map(float, scanned)), list(map(float, plain)), rtol=1e-6)


# The program ----------------------------------------------------------------------------------


def test_a_deep_towers_program_is_that_of_one_block():
    def size(**changes):
        tower = vit(**changes)
        program = jax.make_jaxpr(lambda x: tower(x, training=True))(images())
        return len(str(program).splitlines())  # an equation a line

    assert size(depth=12, scan=True) < size(depth=12) / 4


@pytest.mark.parametrize("remat", stack.REMATS)
def test_a_plan_counts_the_same_flops(tiny, remat):
    plain, scanned = (Towers(flip(tiny, scan, remat)) for scan in (False, True))
    assert scanned.parameters == plain.parameters
    assert scanned.forward("image", 0.5) == plain.forward("image", 0.5)
    assert scanned.training(0.5) == plain.training(0.5)


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: setattr(b[1], "norm_epsilon", 1e-3), "block_01 differs from block_00"),
        (lambda b: b.pop() and b.append(scrambled_block(mlp_dim=8)), "other differs from block_00"),
        (lambda b: b.reverse(), "the last block lacks attention_drop_path, which block_02 has"),
    ],
    ids=["setting", "shape", "dropout"],
)
def test_blocks_that_differ_are_refused(change, message):
    tower = vit(scan=True, drop_path=0.1)
    blocks = list(tower.blocks)
    change(blocks)
    with pytest.raises(ConfigurationError, match=message):
        stack.apply_in_turn(blocks, lambda b, x: (b(x), None), np.ones((1, 2, 16)), scan=True)


def scrambled_block(**changes):
    block = layers.TransformerBlock(16, 2, **changes, name="other")
    block.build((None, None, 16))
    return block


class Stateful(layers.TransformerBlock):
    """A block with a layer that has a state of its own."""

    def __init__(self, extra, **kwargs):
        super().__init__(16, 2, **kwargs)
        self.extra = extra

    def build(self, input_shape):
        super().build(input_shape)
        self.extra.build(input_shape)

    def call(self, x, mask=None, training=False):
        return self.extra(super().call(x, mask=mask), training=training)


@pytest.mark.parametrize(
    ("extra", "variable"),
    [
        (keras.layers.BatchNormalization, "moving_mean"),
        (keras.layers.Dropout, "seed_generator_state"),
    ],
)
def test_a_block_that_changes_its_variables_is_refused_in_training(extra, variable):
    given = {"rate": 0.5} if extra is keras.layers.Dropout else {}
    blocks = [Stateful(extra(**given, name="extra"), name=f"block_0{i}") for i in range(2)]
    for block in blocks:
        block.build((None, None, 16))

    def run(training):
        def step(block, x):
            return block(x, training=training), None

        x = np.ones((2, 3, 16), "float32")
        return stack.apply_in_turn(blocks, step, x, training=training, scan=True)[0]

    assert np.isfinite(run(False)).all()
    with pytest.raises(ConfigurationError, match=f"a block changes its .*{variable}"):
        run(True)


@pytest.mark.parametrize("scan", [None, 1, "yes"])
def test_scan_is_true_or_false(scan):
    with pytest.raises(ConfigurationError, match="true or false"):
        flipkit.ViT(16, 4, **DEEP, scan=scan)


def test_other_backends_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ConfigurationError, match=r"scan=True needs Keras's JAX backend.*'torch'"):
        stack.checked_scan(True)
    with pytest.raises(ConfigurationError, match=r"needs Keras's JAX backend.*'torch'"):
        stack.kept(lambda x: x, "dots")


def test_scan_is_a_setting_that_changes_no_weights(tiny):
    from flipkit.weights.initial import differing_settings

    assert not differing_settings(flip(tiny, True, "dots"), flip(tiny, False))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(vit(scan=True))))
    assert keras.saving.deserialize_keras_object(config).scan is True
