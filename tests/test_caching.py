"""Micro-batches change the memory of a step and nothing else."""

import importlib.util
import re

import jax
import keras
import numpy as np
import pytest

import flipkit
from flipkit import planning
from flipkit.paths import canonical
from flipkit.records.journal import read_metrics

BATCH = 48


def model(masker="random", text_masker=None, *, dropout=0.1, seed=3, **settings):
    """Two small towers with dropout and stochastic depth, half of the patches masked."""
    image = flipkit.ViT(32, 8, 32, 2, 4, dropout=dropout, drop_path=dropout)
    text = flipkit.TextTransformer(64, 12, 32, 2, 4, dropout=dropout)
    masks = {"masker": masker, "mask_ratio": 0.75 if masker else 0.0}
    if text_masker:
        masks |= {"text_masker": text_masker, "text_mask_ratio": 0.5}
    return flipkit.FLIP(image, text, dim=24, seed=seed, **masks, **settings)


def batch(size=BATCH):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, 32, 32, 3), "uint8")
    return {"image": pixels, "text": rng.integers(1, 64, (size, 12), "int32")}


def gradients(flip, microbatch, loss=None, x=None):
    """The loss and {path: gradient} of the first step, and the program's temporary memory."""
    flip.compile("sgd", **({} if loss is None else {"loss": loss}), microbatch=microbatch)
    flip.optimizer.build(flip.trainable_variables)
    names = ("trainable_variables", "non_trainable_variables", "metrics_variables")
    values = [[v.value for v in getattr(flip, name)] for name in names]
    optimizer = [v.value for v in flip.optimizer.variables]

    def step(values, x):
        given = {"training": True, "optimizer_variables": optimizer}
        (loss, _), gradient = flip.loss_and_gradient()(*values, x, None, None, **given)
        return loss, gradient

    x = batch() if x is None else x
    program = jax.jit(step).lower(values, x).compile()
    loss, found = program(values, x)
    paths = [canonical(v.path) for v in flip.trainable_variables]
    memory = program.memory_analysis().temp_size_in_bytes
    return float(loss), dict(zip(paths, map(np.asarray, found), strict=True)), memory


def compare(one, other):
    """Checks that two of `gradients` are equal: losses, and tensors beside their largest elements."""
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for path, value in other[1].items():
        # The gradient of a key's bias is zero: a softmax does not change with it.
        size = 0.1 if "key/bias" in path else max(np.abs(value).max(), 1e-30)
        assert np.abs(one[1][path] - value).max() <= 1e-5 * size, path


@pytest.mark.parametrize("microbatch", [24, 12, 6, 1])
def test_the_gradient_is_that_of_the_whole_batch(microbatch):
    compare(gradients(model(), microbatch), gradients(model(), None))


def decoded():
    return model(reconstruction=flipkit.MAEDecoder(16, 1, 2))


def shifted():
    return model(init_logit_bias=-10.0, temperature=0.1)


def contrastive():
    return flipkit.ContrastiveLoss()


def distilled():
    return flipkit.Distillation(model(dropout=0.0, seed=9))


KINDS = {  # what makes the model, and the loss
    "unmasked": (lambda: model(masker=None), contrastive),
    "masked texts": (lambda: model(text_masker="random"), contrastive),
    "frozen image tower": (lambda: model(frozen=["image"]), contrastive),
    "reconstruction": (decoded, contrastive),
    "sigmoid": (shifted, flipkit.losses.SigmoidLoss),
    "smoothing": (model, lambda: flipkit.ContrastiveLoss(0.1)),
    "distillation": (model, distilled),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_so_for_every_kind_of_training(kind):
    make, loss = KINDS[kind]
    compare(gradients(make(), 12, loss()), gradients(make(), None, loss()))


def test_a_classifier_learns_in_micro_batches_too():
    def made():
        image = flipkit.ViT(32, 8, 32, 1, 4, dropout=0.1)
        return flipkit.Classifier(image, classes=5, seed=1)

    x = {"image": batch()["image"], "label": np.arange(BATCH, dtype="int32") % 5}
    compare(gradients(made(), 8, x=x), gradients(made(), None, x=x))


def test_memory_falls_with_the_micro_batch():
    memories = [gradients(model(), microbatch)[2] for microbatch in (None, 12, 4)]
    assert memories[1] < 0.5 * memories[0]
    assert memories[2] < 0.6 * memories[1]


def trained(microbatch):
    """The log and {path: value} after three steps of fit with clipping and averages."""
    flip = model()
    optimizer = flipkit.AdamW(1e-3, use_ema=True, global_clipnorm=0.5)
    flip.compile(optimizer, microbatch=microbatch)
    data = ((batch(),) for _ in range(3))
    log = flip.fit(data, steps_per_epoch=1, epochs=3, verbose=0).history
    log = {name: v for name, v in log.items() if name not in ("pairs_per_second", "data_wait")}
    return log, {canonical(v.path): v.numpy() for v in (*flip.variables, *optimizer.variables)}


def test_fit_logs_and_ends_as_with_whole_batches():
    (log, values), (expected_log, expected) = trained(12), trained(None)
    assert log.keys() == expected_log.keys()
    for name in log:
        np.testing.assert_allclose(log[name], expected_log[name], rtol=2e-5, atol=1e-6)
    for path, value in expected.items():
        if not re.search("key.bias", path):  # noise, which Adam scales up to a whole step
            np.testing.assert_allclose(values[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


class Averaging(flipkit.RandomMasker):
    """Keeps the mean of what it has seen, as a masker of attention scores does."""

    def build(self, input_shape):
        self.mean = self.add_weight(shape=(), trainable=False, name="mean")

    def call(self, x, keep, *, grid, seed):
        mean = keras.ops.mean(keras.ops.cast(x, "float32"))
        self.mean.assign(0.9 * self.mean + 0.1 * mean)
        return super().call(x, keep, grid=grid, seed=seed)


def test_a_maskers_own_average_is_that_of_the_whole_batch():
    found = []
    for microbatch in (None, 12):
        flip = model(masker=Averaging())
        flip.compile("sgd", microbatch=microbatch)
        flip.fit(batch(), batch_size=BATCH, epochs=2, verbose=0)
        found.append(float(flip.masker.mean))
    assert found[0] > 1
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def run(**settings):
    image = flipkit.ViT(32, 8, 32, 2, 4, dropout=0.1)
    text = flipkit.TextTransformer(259, 12, 32, 2, 4, dropout=0.1)
    flip = flipkit.FLIP(image, text, mask_ratio=0.75, dim=24, tokenizer="bytes")
    return flipkit.Run(
        flip,
        data=flipkit.CaptionedShapes(size=BATCH, image_size=32),
        feed=flipkit.Feed(crop=None, flip=False, threads=1),
        optimizer=sgd(),
        phases=[flipkit.Phase(2 * BATCH, BATCH, **settings)],
        log_every=1,
    )


def sgd():
    return keras.optimizers.SGD(0.1)


def test_a_phase_of_a_run_has_micro_batches(tmp_path):
    losses = []
    for microbatch in (None, 12):
        folder = tmp_path / str(microbatch)
        assert run(microbatch=microbatch).start(folder).microbatch == microbatch
        losses.append([row["loss"] for row in read_metrics(folder)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_plan_counts_the_second_forward_pass():
    (whole,), (cut,) = (planning.plan(run(microbatch=m))["phases"] for m in (None, 12))
    for tower in ("image", "text"):
        assert cut["training_flops_per_pair"][tower] > 1.2 * whole["training_flops_per_pair"][tower]
    again = cut["forward_flops_per_pair"]
    assert sum(cut["training_flops_per_pair"].values()) == pytest.approx(
        sum(whole["training_flops_per_pair"].values()) + again
    )


def test_a_phase_has_whole_micro_batches():
    with pytest.raises(flipkit.ConfigurationError, match="batch_size=48, microbatch=10"):
        run(microbatch=10)


# What can't be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("microbatch", "reason"),
    [(0, "1 or more"), (2.5, "1 or more"), (True, "1 or more"), ("8", "1 or more")],
)
def test_a_size_that_is_none_is_refused(microbatch, reason):
    with pytest.raises(flipkit.ConfigurationError, match=reason):
        model().compile("sgd", microbatch=microbatch)


def test_a_batch_has_whole_micro_batches():
    flip = model()
    flip.compile("sgd", microbatch=10)
    with pytest.raises(flipkit.ConfigurationError, match="microbatch=10 and a batch of 48"):
        flip.fit(batch(), batch_size=BATCH, verbose=0)
    assert np.isfinite(flip.encode_images(batch(2)["image"])).all()  # nothing is lost


def test_what_mixes_rows_is_refused():
    image = flipkit.ViT(32, 8, 32, 1, 4)
    mixing = flipkit.Classifier(image, classes=5, mixup=0.8)
    with pytest.raises(flipkit.ConfigurationError, match=r"mixup=0\.8"):
        mixing.compile("sgd", microbatch=8)
    flip = model()
    flip.image_projection = keras.layers.BatchNormalization(name="between")
    with pytest.raises(flipkit.ConfigurationError, match="BatchNormalization between"):
        flip.compile("sgd", microbatch=8)


def test_other_backends_refuse_micro_batches(fresh):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed: pip install flipkit[tf]")
    code = """
import flipkit
image = flipkit.ViT(16, 8, 16, 1, 2)
flip = flipkit.FLIP(image, flipkit.TextTransformer(64, 8, 16, 1, 2), dim=8)
try:
    flip.compile("sgd", microbatch=8)
except flipkit.ConfigurationError as problem:
    print(problem)
"""
    found = fresh(code, KERAS_BACKEND="tensorflow")
    assert found.startswith("microbatch needs Keras's JAX backend; this process uses 'tensorflow'.")


ON_EIGHT = """
import sys; sys.path.insert(0, {folder!r})
import keras
from test_caching import compare, gradients, model, batch
D = keras.distribution
alone = gradients(model(), None)
mesh = D.DeviceMesh((4, 2), ("batch", "model"), D.list_devices())
product = D.ModelParallel(
    layout_map=D.LayoutMap(mesh), batch_dim_name="batch", auto_shard_dataset=False
)
for distribution in (D.DataParallel(auto_shard_dataset=False), product):
    D.set_distribution(distribution)
    x = {{k: D.distribute_tensor(v, distribution.get_data_layout(v.shape)) for k, v in batch().items()}}
    for microbatch in (None, 24, 8):
        compare(gradients(model(), microbatch, x=x), alone)
    flip = model()
    flip.compile("sgd", microbatch=12)
    try:
        flip.fit(batch(), batch_size=48, verbose=0)
    except Exception as problem:
        print(problem)
    D.set_distribution(None)
"""


def test_on_eight_devices_too(fresh, request):
    found = fresh(ON_EIGHT.format(folder=str(request.path.parent)), devices=8)
    refused = "equally many rows on 8 devices. Received: microbatch=12 and a batch of 48"
    assert [line.endswith(refused) for line in found.splitlines()] == [True]
