"""Small models around a component under test, in this process and in a fresh one."""

import contextlib
import functools
import pathlib
import shutil
import tempfile
import weakref

import jax
import keras
import numpy as np

from flipkit import registry
from flipkit.checks import sides
from flipkit.models.flip import FLIP
from flipkit.testing.check import Checks, expect, expect_close, module_of, slow
from flipkit.testing.elsewhere import Elsewhere
from flipkit.weights import load_model

TEXTS = ["a small red square", "", "Zwölf Boxkämpfer", "日本 🦊", "word " * 100]


@keras.saving.register_keras_serializable(package="flipkit.testing")
class MeanColour(keras.layers.Layer):
    """The image tower of a model that tests a text encoder. It compiles fast."""

    dim, image_size = 8, 8

    def build(self, shape=None):
        self.kernel = self.add_weight(shape=(3, self.dim), name="kernel")

    def call(self, x, training=False):
        return keras.ops.matmul(keras.ops.mean(x, axis=(1, 2)), self.kernel)

    def layout(self):
        return ()


@keras.saving.register_keras_serializable(package="flipkit.testing")
class MeanWord(keras.layers.Layer):
    """The text tower of a model that tests an image encoder. It compiles fast."""

    dim, vocab, length = 8, 50, 4

    def build(self, shape=None):
        self.table = self.add_weight(shape=(self.vocab, self.dim), name="table")

    def call(self, x, training=False):
        return keras.ops.mean(keras.ops.take(self.table, x, axis=0), axis=1)

    def layout(self):
        return ()


def tiny(image=None, text=None, **settings):
    """Returns a built FLIP with the given encoders; the small ones above in place of None."""
    model = FLIP(
        image or MeanColour(),
        text or MeanWord(),
        dim=8,
        **{"mask_ratio": 0.5, "seed": 3, **settings},
    )
    model.build()
    return model


def pairs_for(model, size=8):
    """Returns a batch of `size` pairs for `model`, the same at every call. One picture is all black."""
    rng = np.random.default_rng(0)
    height, width = sides(model.image.image_size)
    images = rng.integers(0, 256, (size, height, width, 3)).astype("uint8")
    images[0] = 0
    text = rng.integers(1, model.text.vocab, (size, model.text.length)).astype("int32")
    return {"image": images, "text": text}


class FileChecks(Checks):
    """Checks of a component that a model's file stores. `_model` returns a model with it."""

    _trains = False  # whether the fresh process trains it

    @slow
    def survives_a_file(self):
        """A model from a `.keras` file returns the same embeddings and token ids in a fresh process."""
        folder = self._kept[1]
        self._result("embedded")
        after = np.load(folder / "after.npz")
        for name, before in self._before.items():
            expected = f"the same {name} from a .keras file in a fresh process"
            expect_close(after[name], before, expected, 1e-6)

    @functools.cached_property
    def _kept(self):
        """A model, and the folder with its file for the fresh process."""
        folder = pathlib.Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder)
        with quickly_compiled():
            return put(self._model(), folder), folder

    @functools.cached_property
    def _before(self):
        with quickly_compiled():
            return outputs(self._kept[0], pairs_for(self._kept[0], 2))

    @functools.cached_property
    def _elsewhere(self):
        found = Elsewhere(module_of(self._make()), looks=True)
        with contextlib.suppress(Exception):  # the checks that need the model raise it again
            found.give(self._kept[1], self._trains)
        return found

    def _model(self) -> FLIP:
        raise NotImplementedError


class PartChecks(FileChecks):
    """Checks of a part of a model in training, in a file and on many devices."""

    _trains = True

    @slow
    def trains(self):
        """Two steps of training have a finite loss and finite gradients."""
        history = self._history
        expect(np.isfinite(history["loss"]).all(), "a finite loss in training", history["loss"])
        # The norm of all gradients together, before anything is clipped.
        norms = history["gradient_norm"]
        expect(np.isfinite(norms).all(), "finite gradients in training", f"a norm of {norms}")

    @slow
    def trains_on_eight_devices(self):
        """A training step on 8 simulated devices has the same loss as one on a single device."""
        one, several = self._history["loss"][0], self._result("loss")
        expected = "the same loss on 8 devices as on one, to 1e-4"
        expect(abs(one - several) < 1e-4, expected, f"{several:.6f} and {one:.6f}")

    @functools.cached_property
    def _history(self):
        """The history of two steps on a single device with the same batch."""
        self._before  # noqa: B018 - computed before training changes the model
        with quickly_compiled():
            return train(self._kept[0], steps=2)


@contextlib.contextmanager
def quickly_compiled():
    """Inside it XLA skips most optimizations: a program that runs once need not be fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def put(model, folder):
    """Writes a model into a folder for a fresh process; returns the model."""
    with registry.without_tensorflow():  # Keras serialises the config
        model.save(folder / "model.keras")
    return model


def reloaded(model):
    """Saves a model to a `.keras` file; returns the model that is loaded from it."""
    with tempfile.TemporaryDirectory() as folder:
        put(model, pathlib.Path(folder))
        return load_model(pathlib.Path(folder) / "model.keras")


def outputs(model, batch):
    """Returns {name: array} of the model's outputs, masked and not, and its token ids of TEXTS."""
    made = {}
    weights = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    for training, how in ((False, "seen whole"), (True, "in training")):
        program = jax.jit(
            lambda t, n, x, how=training: model.stateless_call(t, n, x, training=how)[0]
        )
        for key, value in program(*weights, batch).items():
            made[f"{key} {how}"] = np.asarray(value)
    if getattr(model, "tokenizer", None) is not None:
        made["token ids"] = model.tokenizer(TEXTS, model.text.length)
    return made


def train(model, steps):
    """Trains for some steps on the same batch; returns the history."""
    model.compile("sgd")  # the smallest program: no check depends on the optimizer
    data = pairs_for(model)
    return model.fit(data, batch_size=8, epochs=steps, shuffle=False, verbose=0).history


# In the fresh process


def load_and_embed(folder):
    """Loads the model in `folder`; writes its outputs to `after.npz` there."""
    model = load_model(folder / "model.keras")
    np.savez(folder / "after.npz", allow_pickle=False, **outputs(model, pairs_for(model, 2)))


def train_on_all(folder):
    """Trains the model in `folder` for a step, the batch split over all devices; returns the loss."""
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return float(train(load_model(folder / "model.keras"), steps=1)["loss"][0])
