"""Small models that hold what is checked, here and in processes of their own."""

import pathlib
import tempfile

import keras
import numpy as np

from flipkit import registry
from flipkit.encoders import TextTransformer, ViT
from flipkit.model import FLIP, load_model
from flipkit.testing.check import Checks, expect, expect_close, fresh, module_of, slow

TEXTS = ["a small red square", "", "Zwölf Boxkämpfer", "日本 🦊", "word " * 100]


def tiny(image=None, text=None, **settings):
    """A FLIP that is built and holds what is checked."""
    model = FLIP(
        image or ViT(32, 8, dim=16, depth=1, heads=2),
        text or TextTransformer(50, 8, dim=16, depth=1, heads=2),
        dim=8,
        **{"mask_ratio": 0.5, "seed": 3, **settings},
    )
    model.build()
    return model


def pairs_for(model, size=8):
    """A batch of `size` pairs that `model` can read, always the same; one picture is all black."""
    rng = np.random.default_rng(0)
    edge = model.image.image_size
    height, width = (edge, edge) if isinstance(edge, int) else edge
    images = rng.integers(0, 256, (size, height, width, 3)).astype("uint8")
    images[0] = 0
    text = rng.integers(1, model.text.vocab, (size, model.text.length)).astype("int32")
    return {"image": images, "text": text}


class PartChecks(Checks):
    """Of a part of a model, which `_model` makes around it: in training, in a file, on many devices."""

    @slow
    def trains(self):
        """Two steps of training have a finite loss and finite gradients."""
        model = self._model()
        model.compile("adamw")
        history = model.fit(pairs_for(model), batch_size=4, shuffle=False, verbose=0).history
        expect(np.isfinite(history["loss"]).all(), "a finite loss in training", history["loss"])
        # The norm of all gradients together, before anything is clipped.
        norms = history["gradient_norm"]
        expect(np.isfinite(norms).all(), "finite gradients in training", f"a norm of {norms}")

    @slow
    def survives_a_file(self):
        survives_a_file(self._model(), module_of(self._make()))

    @slow
    def trains_on_eight_devices(self):
        """A step of training on 8 simulated devices has the loss of one on a single device."""
        module = module_of(self._make())
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            _save(self._model(), path)
            one = train_file(path)
            several = float(fresh(TRAIN.format(module=module, path=str(path)), devices=8))
        told = "the same loss on 8 devices as on one, to 1e-4"
        expect(abs(one - several) < 1e-4, told, f"{several:.6f} and {one:.6f}")

    def _model(self) -> FLIP:
        raise NotImplementedError


def survives_a_file(model, module):
    """A `.keras` file gives the same embeddings and token ids in a fresh process."""
    batch = pairs_for(model, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        _save(model, path / "model.keras")
        np.savez(path / "batch.npz", allow_pickle=False, **batch)
        fresh(LOAD.format(module=module, folder=str(path)))
        after = np.load(path / "after.npz")
        for name, before in outputs(model, batch).items():
            told = f"the same {name} from a .keras file in a fresh process"
            expect_close(after[name], before, told, 1e-6)


def _save(model, path):
    with registry.without_tensorflow():  # Keras serialises what it saves
        model.save(path)


def outputs(model, batch):
    """What `model` makes of a batch, masked and not, and its tokenizer of words."""
    made = {}
    for training, how in ((False, "seen whole"), (True, "in training")):
        for key, value in model(batch, training=training).items():
            made[f"{key} {how}"] = np.asarray(value)
    if model.tokenizer is not None:
        made["token ids"] = model.tokenizer(TEXTS, model.text.length)
    return made


LOAD = """
import importlib
import flipkit.testing.models
importlib.import_module({module!r})
flipkit.testing.models.load_and_embed({folder!r})
print("done")
"""

TRAIN = """
import importlib
import flipkit.testing.models
importlib.import_module({module!r})
flipkit.testing.models.spread()
print(flipkit.testing.models.train_file({path!r}))
"""


def load_and_embed(folder):
    """In the fresh process: what the model in `folder` makes of the batch there."""
    folder = pathlib.Path(folder)
    batch = dict(np.load(folder / "batch.npz"))
    after = outputs(load_model(folder / "model.keras"), batch)
    np.savez(folder / "after.npz", allow_pickle=False, **after)


def spread():
    """In the fresh process: a batch is shared by all devices from here on."""
    keras.distribution.set_distribution(keras.distribution.DataParallel())


def train_file(path):
    """The loss of a step of training of the model in a file."""
    model = load_model(path)
    model.compile("adamw")
    history = model.fit(pairs_for(model), batch_size=8, shuffle=False, verbose=0).history
    return float(history["loss"][-1])
