"""FLIP: two towers, a masker and a loss, with its preprocessing and its tokenizer inside."""

import inspect
import math
import pathlib
import zipfile

import keras
import numpy as np
from keras import ops

from flipkit import encoders, losses, maskers, optimizers, plugins, registry, tokenizers
from flipkit.callbacks import Throughput
from flipkit.errors import ConfigurationError
from flipkit.layers import gather, patchify
from flipkit.metrics import PairMetrics
from flipkit.preprocessing import get as get_preprocessing
from flipkit.random import Seed, initial_values, seed_scope
from flipkit.registry import register
from flipkit.train_step import TrainStep

MAX_LOGIT_SCALE = 100.0  # CLIP, arXiv 2103.00020, section 2.5; the official FLIP clips alike


@register
class FLIP(TrainStep, keras.Model):
    """Fast language-image pre-training (Li et al., CVPR 2023, arXiv 2212.00794) as a Keras model.

    In training, a random share of each image's patches never reaches the image tower; at inference it
    sees all of them. With `mask_ratio=0` this is CLIP.

    Args:
        image: image encoder: a name, an object (`flipkit.ViT`) or its config.
        text: text encoder, likewise (`flipkit.TextTransformer`).
        masker: which patches to keep in training; None keeps all.
        mask_ratio: share of patches dropped in training, in [0, 1).
        text_masker, text_mask_ratio: the same for the text's tokens.
        dim: width of the embedding both towers are projected to.
        temperature: initial value of the learned temperature; 0.07 as CLIP and FLIP.
        preprocessing: `flipkit.Preprocessing`: how pixels become numbers.
        tokenizer: how strings become ids: a name, an object or None.
        seed: int, what masks, dropout and initial weights are functions of; None takes the seed of
            the `flipkit.Run`, and 0 outside a run.

    Call arguments:
        inputs: a dict with `image` (uint8, batch x height x width x 3) or `patches` (uint8, batch x
            kept x pixels) with `image_ids` (int32, batch x kept), and `text` (int32, batch x length),
            optionally with `text_ids`. `image_ids` beside `image` selects patches. A model that gets
            no ids draws its own, in training only. Without `text`, or without an image, the other
            alone is embedded.

    Returns:
        A dict of float32 unit vectors: `image` (batch, dim), `text` (batch, dim).
    """

    def __init__(
        self,
        image,
        text,
        *,
        masker="random",
        mask_ratio=0.5,
        text_masker=None,
        text_mask_ratio=0.0,
        dim=512,
        temperature=0.07,
        preprocessing=None,
        tokenizer=None,
        seed=None,
        name="flip",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)  # pyright: ignore[reportCallIssue]
        self.image, self.text = encoders.get(image), encoders.get(text)
        self.masker, self.text_masker = maskers.get(masker), maskers.get(text_masker)
        for role in ("image", "text", "masker", "text_masker"):
            part = getattr(self, role)
            if part is not None and not part.built:
                part.name = role  # variables are called image/..., whoever made the part
        self.dim, self.temperature, self.seed = dim, temperature, seed
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.preprocessing = get_preprocessing(preprocessing)
        self.tokenizer = tokenizers.get(tokenizer)
        for projection in ("image_projection", "text_projection"):
            layer = keras.layers.Dense(
                dim, use_bias=False, dtype=self.dtype_policy, name=projection
            )
            setattr(self, projection, layer)

    # Masking ------------------------------------------------------------------------------------

    @property
    def mask_ratio(self) -> float:
        """Share of patches dropped in training; setting it makes `fit` compile a new step."""
        return self._mask_ratio

    @mask_ratio.setter
    def mask_ratio(self, ratio):
        ratio = _checked_ratio("mask_ratio", ratio)
        if self.masker is not None and ratio and not getattr(self.image, "grid", None):
            raise ConfigurationError(
                f"{type(self.image).__name__} cannot skip patches (it tells no grid), so it can't be "
                f"masked. Set mask_ratio=0 or masker=None, or take an encoder such as 'vit'. "
                f"Received: mask_ratio={ratio}"
            )
        self._mask_ratio = ratio
        self.train_function = None  # Keras would go on with the program compiled for the old ratio

    @property
    def text_mask_ratio(self) -> float:
        """Share of a text's tokens dropped in training."""
        return self._text_mask_ratio

    @text_mask_ratio.setter
    def text_mask_ratio(self, ratio):
        self._text_mask_ratio = _checked_ratio("text_mask_ratio", ratio)
        self.train_function = None

    @property
    def masks_images(self) -> bool:
        """Whether training drops patches."""
        return self.masker is not None and self.mask_ratio > 0

    @property
    def kept_patches(self) -> int:
        """Patches of an image that training keeps: round(patches * (1 - mask_ratio)), at least 1."""
        return _kept(math.prod(self.image.grid), self.mask_ratio if self.masker else 0)

    @property
    def kept_tokens(self) -> int:
        """Tokens of a text that training keeps."""
        return _kept(self.text.length, self.text_mask_ratio if self.text_masker else 0)

    # The forward pass ---------------------------------------------------------------------------

    def build(self, input_shape=None):
        """Creates every variable; needs no data, since the towers know their input's shape."""
        with initial_values(self, self.seed or 0):
            self.step = self.add_weight(
                shape=(), dtype="int32", initializer="zeros", trainable=False, name="step"
            )
            start = keras.initializers.Constant(-math.log(self.temperature))
            self.logit_scale = self.add_weight(
                shape=(), dtype="float32", initializer=start, autocast=False, name="logit_scale"
            )
            images, texts = (None, *_image_size(self.image), 3), (None, self.text.length)
            parts = {self.image: images, self.text: texts}
            parts |= {self.masker: images, self.text_masker: texts}
            for part, shape in parts.items():
                if part is not None and not part.built:
                    part.build(shape)
            for encoder, projection in (
                (self.image, self.image_projection),
                (self.text, self.text_projection),
            ):
                if not projection.built:
                    projection.build((None, encoder.dim))

    def call(self, inputs, training=False):
        seed = Seed(self.seed or 0, self.step) if training else None
        outputs = {}
        with seed_scope(seed):
            if "image" in inputs or "patches" in inputs:
                outputs["image"] = self._embed_image(inputs, seed)
            if "text" in inputs:
                outputs["text"] = self._embed_text(inputs, seed)
        if not outputs:
            raise ConfigurationError(
                "Expected a dict with 'image' or 'patches', 'text', or both. Received the keys: "
                f"{sorted(inputs)}"
            )
        return outputs

    def _embed_image(self, inputs, seed):
        x, ids = inputs.get("patches", inputs.get("image")), inputs.get("image_ids")
        draws = seed is not None and ids is None and "image" in inputs and self.masks_images
        if len(x.shape) == 4 and (draws or ids is not None):
            # Raw uint8 patches are gathered, so that what is dropped is never converted or embedded.
            x = patchify(x, self.image.patch_size)
            if draws:
                ids = self.masker(
                    x, keep=self.kept_patches, grid=self.image.grid, seed=seed.named("masker")
                )
            x = gather(x, ids)
        x = self.preprocessing.normalise(x)
        training = seed is not None
        features = (
            self.image(x, training=training)
            if ids is None
            else self.image(x, ids=ids, training=training)
        )
        return _unit(self.image_projection(features))

    def _embed_text(self, inputs, seed):
        x, keep = inputs["text"], inputs.get("text_ids")
        if seed is not None and keep is None and self.kept_tokens < self.text.length:
            grid, own = (1, self.text.length), seed.named("text_masker")
            keep = self.text_masker(x, keep=self.kept_tokens, grid=grid, seed=own)
        training = seed is not None
        features = (
            self.text(x, training=training)
            if keep is None
            else self.text(x, keep=keep, training=training)
        )
        return _unit(self.text_projection(features))

    @property
    def scale(self):
        """The float32 factor of the cosines: exp(logit_scale), clipped to [1, 100]."""
        return ops.exp(ops.clip(self.logit_scale, 0.0, math.log(MAX_LOGIT_SCALE)))

    # Training -----------------------------------------------------------------------------------

    def compile(self, optimizer="adamw", loss="contrastive", **kwargs):
        """As `keras.Model.compile`; builds the model first.

        Args:
            optimizer: a name of flipkit's or Keras's, or an object.
            loss: `flipkit.losses.Loss`: a name or an object.
        """
        if not self.built:
            self.build()
        optimizer = optimizers.get(optimizer)
        if getattr(optimizer, "gradient_accumulation_steps", None):
            raise ConfigurationError(
                "gradient_accumulation_steps does not enlarge a contrastive batch: each part would "
                "see only its own negatives. Take a larger batch_size. Received: "
                f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}"
            )
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        self.pair_loss = losses.get(loss)
        self.pair_metrics = PairMetrics()

    @property
    def metrics(self):
        """The loss, the pair metrics, and what `compile(metrics=...)` added."""
        mine = self.pair_metrics.means.values() if self.compiled else ()
        return [*super().metrics, *mine]

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "loss": registry.serialize(self.pair_loss)} if self.compiled else config

    def compile_from_config(self, config):
        config = registry.deserialize(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        missing = {"image", "text"} - y_pred.keys()
        if missing:
            raise ConfigurationError(f"The loss needs pairs; the batch lacks: {sorted(missing)}")
        return sum(self.losses, self.pair_loss(y_pred["image"], y_pred["text"], self.scale))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # Not y_pred.get("scale", self.scale): in a training step the weights have no values here.
        scale = y_pred["scale"] if "scale" in y_pred else self.scale  # noqa: SIM401
        self.pair_metrics.update(y_pred, scale)
        results = self.get_metrics_result()
        if "gradient_norm" not in y_pred:  # an evaluation
            results.pop("gradient_norm")
        return results

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """As `keras.Model.fit`; logs also `pairs_per_second` and `data_wait`, the share of time spent
        waiting for data (JAX backend). A Keras `CallbackList` is used as it is, without them.
        """
        if inspect.isgenerator(x):
            kwargs.setdefault("shuffle", False)  # Keras warns that it can't
        given = isinstance(callbacks, keras.callbacks.CallbackList)
        if keras.backend.backend() == "jax" and not given:
            callbacks = [Throughput(), *keras.tree.flatten(callbacks or [])]
        history = super().fit(x, *args, callbacks=callbacks, **kwargs)
        if getattr(self.optimizer, "use_ema", False):
            # Keras 3.15 has put the averages' own arrays into the weights, and the next step would
            # give each away twice.
            for variable in self.trainable_variables:
                variable.assign(ops.copy(variable))
        return history

    # Using it -----------------------------------------------------------------------------------

    def encode_images(self, images, batch_size=64) -> np.ndarray:
        """Pictures -> float32 unit vectors (n, dim).

        Args:
            images: a list of paths, bytes, PIL images or uint8 arrays (height, width, 3) of any
                size, or one uint8 array (n, height, width, 3).
        """
        size = _image_size(self.image)
        pixels = self.preprocessing.prepare(images, size[0] if size[0] == size[1] else size)
        return self._encode("image", pixels, batch_size)

    def encode_texts(self, texts, batch_size=256) -> np.ndarray:
        """Strings -> float32 unit vectors (n, dim)."""
        if self.tokenizer is None:
            raise ConfigurationError(
                "This model has no tokenizer. Set FLIP(tokenizer='wordpiece')."
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self._encode("text", self.tokenizer(texts, self.text.length), batch_size)

    def _encode(self, key, rows, batch_size):
        if not self.built:
            self.build()
        count = len(rows)
        if not count:
            return np.zeros((0, self.dim), "float32")
        # Batches of few sizes: a power of two below batch_size, so that few programs are compiled.
        size = min(batch_size, max(8, 1 << (count - 1).bit_length()))
        padded = np.concatenate([rows, np.repeat(rows[-1:], -count % size, axis=0)])
        outputs = self.predict({key: padded}, batch_size=size, verbose=0)
        return np.asarray(outputs[key][:count])

    def summary(self, *args, print_fn=None, **kwargs):
        """Keras's summary, and how many patches and tokens training keeps."""
        if not self.built:
            self.build()
        super().summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(self.masking_summary())

    def masking_summary(self) -> str:
        """One line: how many patches and tokens training keeps."""
        tokens = f"{self.kept_tokens} of {self.text.length} text tokens"
        if not getattr(self.image, "grid", None):
            return f"Training keeps the whole image and {tokens}."
        patches = f"{self.kept_patches} of {math.prod(self.image.grid)} patches"
        return f"Training keeps {patches} (mask ratio {self.mask_ratio:g}) and {tokens}."

    # Saving -------------------------------------------------------------------------------------

    def get_config(self):
        names = ("masker", "mask_ratio", "text_masker", "text_mask_ratio", "dim", "temperature")
        config = {n: getattr(self, n) for n in ("image", "text", *names, "seed")}
        config |= {"preprocessing": self.preprocessing, "tokenizer": self.tokenizer}
        config = registry.serialize(config)
        for encoder in ("image", "text"):
            config[encoder].pop("build_config", None)  # FLIP builds its towers itself
        return {**config, "name": self.name, "dtype": registry.serialize(self.dtype_policy)}

    @classmethod
    def from_config(cls, config):
        return cls(**registry.deserialize(config))

    def get_build_config(self):
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config):
        self.build()

    def save_assets(self, folder):
        if self.tokenizer is not None and self.tokenizer.vocab is not None:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            self.tokenizer.save_assets(folder)

    def load_assets(self, folder):
        if self.tokenizer is not None:
            self.tokenizer.load_assets(folder)


def load_model(path, compile=False):
    """The model in a `.keras` file, with the components that plugins gave it.

    Args:
        path: a file that `model.save` or a run wrote.
        compile: whether optimizer and loss come back too, for training on.
    """
    plugins.listing()  # imports every component: Keras finds only classes that were registered
    if not pathlib.Path(path).is_file():
        raise ConfigurationError(f"Expected a .keras file. Received: {path}, which does not exist.")
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(f"Expected a .keras file. Received: {path}, which is none.")
    return keras.saving.load_model(path, compile=compile)


def _checked_ratio(name, ratio):
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={ratio!r}")
    return float(ratio)


def _kept(tokens, ratio):
    return max(1, round(tokens * (1 - ratio)))


def _image_size(encoder):
    size = encoder.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _unit(x):
    """Unit vectors, in float32; finite, and with a finite gradient, for a zero vector too."""
    x = ops.cast(x, "float32")
    norm = ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-30))
    return x / (norm + 1e-8)
