"""FLIP: two towers, a masker and a loss, with its preprocessing and its tokenizer inside."""

import importlib
import math
import pathlib

import keras
import numpy as np
from keras import ops

from flipkit import checks, encoders, losses, maskers, optimizers, registry, tokenizers
from flipkit.checks import Size, sides
from flipkit.distribution import constrained
from flipkit.errors import ConfigurationError
from flipkit.models.inputs import Ids, Pixels
from flipkit.models.masked import Masked
from flipkit.models.metrics import pair_accuracies
from flipkit.models.reconstruction import get as reconstruction_of
from flipkit.preprocessing import get as get_preprocessing
from flipkit.random import seed_scope
from flipkit.registry import register

HEADS = ("linear", "affine", None)
# It imports the model and not the other way round; so methods that need it call it by name.
_WEIGHTS = "flipkit.weights"


@register
class FLIP(Masked):
    """Fast language-image pre-training (Li et al., CVPR 2023, arXiv 2212.00794) as a Keras model.

    In training, a random share of each image's patches never reaches the image tower; at inference it
    sees all of them. With `mask_ratio=0` this is CLIP.

    Args:
        image: image encoder: a name, an object (`flipkit.ViT`) or its config.
        text: text encoder, likewise (`flipkit.TextTransformer`).
        masker: which patches to keep in training; None keeps all.
        mask_ratio: share of patches dropped in training, in [0, 1).
        text_masker, text_mask_ratio: the same for the text's tokens.
        image_size: pixels of the pictures in training, one side or (height, width), divisible by the
            patch size: the other way to fewer tokens (RECLIP, arXiv 2304.06028; CLIPA, arXiv 2305.07017).
            None is the tower's own, the size that `encode_images` uses in any case. For another size the
            tower's positions are resampled, as in `flipkit.ViT`; CLIPA's code numbers the patches of
            each size from 0 instead, so that the middle is elsewhere when the size changes.
        dim: width of the embedding to which both towers are projected.
        image_head, text_head: from a tower's features to the embedding: "linear", without a bias (FLIP,
            CLIP), "affine", with one (SigLIP's text), or None: the features themselves (SigLIP's image),
            which then have `dim` numbers.
        reconstruction: `flipkit.MAEDecoder`: predicts the dropped patches in training; its loss is added
            to the contrastive one and logged as `reconstruction_loss`. None is FLIP as published.
        temperature: initial value of the learned temperature; 0.07 as CLIP and FLIP, 0.1 in SigLIP.
        max_logit_scale: where the factor of the cosines is clipped; 100 as in CLIP (arXiv 2103.00020,
            section 2.5) and the official FLIP, which also keeps it at 1 or above; None clips nowhere.
        init_logit_bias: initial value of the learned bias that the loss "sigmoid" needs, -10 in SigLIP;
            None is no bias.
        frozen: patterns of variables that training does not change, as in `flipkit.paths`: `["image"]`
            is the image tower (LiT, arXiv 2111.07991); a `flipkit.Phase` may change them.
        preprocessing: `flipkit.Preprocessing`: how pixels become numbers.
        tokenizer: how strings become ids: a name, an object or None.
        seed: int in [0, 2^64), of which masks, dropout and initial weights are functions; None takes the
            seed of the `flipkit.Run`, and 0 outside a run.

    Call arguments:
        inputs: a dict with `image` (uint8, batch x height x width x 3) or `patches` (uint8, batch x
            kept x pixels) with `image_ids` (int32, batch x kept), and `text` (int32, batch x length),
            optionally with `text_ids`. `image_ids` beside `image` selects patches. Without ids the model
            draws its own, in training only. Without `text`, or without an image, it embeds the other
            alone.

    Returns:
        A dict of float32 unit vectors: `image` (batch, dim), `text` (batch, dim); in training, where
        dropped patches are reconstructed, also `reconstruction` (batch,), the error of that.
    """

    reads = "text"
    towers = {"image": ("image",), "text": ("text",)}
    default_loss = "contrastive"

    def __init__(
        self,
        image="vit",
        text="text_transformer",
        *,
        masker="random",
        mask_ratio=0.5,
        text_masker=None,
        text_mask_ratio=0.0,
        image_size: Size | None = None,
        dim=512,
        image_head: str | None = "linear",
        text_head: str | None = "linear",
        reconstruction=None,
        temperature=0.07,
        max_logit_scale: float | None = 100.0,
        init_logit_bias: float | None = None,
        frozen=(),
        preprocessing=None,
        tokenizer=None,
        seed=None,
        name="flip",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)  # pyright: ignore[reportCallIssue]
        self.image, self.text = encoders.get(image), encoders.get(text)
        self.masker, self.text_masker = maskers.get(masker), maskers.get(text_masker)
        self.reconstruction = reconstruction_of(reconstruction)
        if self.reconstruction is not None and not hasattr(self.image, "tokens"):
            raise ConfigurationError(
                f"{type(self.image).__name__} hands out no tokens to reconstruct from. Set "
                "reconstruction=None, or take an encoder such as 'vit'."
            )
        checks.whole(dim=dim)
        checks.number(above=0, temperature=temperature)
        if max_logit_scale is not None:
            checks.number(least=1, max_logit_scale=max_logit_scale)
        if init_logit_bias is not None:
            checks.number(init_logit_bias=init_logit_bias)
        self.dim, self.temperature = dim, temperature
        self.seed = None if seed is None else checks.as_seed(seed)
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.image_size = image_size
        self.preprocessing = get_preprocessing(preprocessing)
        self.tokenizer = tokenizers.get(tokenizer)
        self.image_head, self.text_head = image_head, text_head
        self.max_logit_scale, self.init_logit_bias = max_logit_scale, init_logit_bias
        self.logit_bias = None  # made by build, if there is one
        self.image_projection = self._head("image_projection", self.image, image_head)
        self.text_projection = self._head("text_projection", self.text, text_head)
        self.frozen = frozen

    def _head(self, name, encoder, head):
        """The layer from features to the embedding, or None."""
        if head not in HEADS:
            raise ConfigurationError(f"Unknown head for {name}: {head!r}. Known: {HEADS}")
        if head is not None:
            bias = head == "affine"
            return keras.layers.Dense(self.dim, use_bias=bias, dtype=self.dtype_policy, name=name)
        if encoder.dim != self.dim:
            raise ConfigurationError(
                f"Without a head the tower's features are the embedding. Expected {self.dim} of them "
                f"for dim={self.dim}. Received: {type(encoder).__name__} with dim={encoder.dim}"
            )
        return None

    # Inputs -------------------------------------------------------------------------------------

    def expected_inputs(self, training):
        """Pictures, patches, texts and ids of what to see; at inference pictures of the tower's own size
        too.
        """
        own, patch = sides(self.image.image_size), getattr(self.image, "patch_size", None)
        sizes = {sides(self.image_size or own)} | (set() if training else {own})
        found: dict = {"text": super().expected_inputs(training)["text"]}
        found["text_ids"] = Ids(self.text.length, "a place in the text", self.text.length)
        if not self.grid:
            return {"image": Pixels(), **found}
        remedy = "FLIP(image_size=...) sets the size that training sees."
        found["image"] = Pixels(tuple(sorted(sizes)), remedy=remedy)
        found["patches"] = Pixels(pixels=3 * patch**2)
        patches = max(height * width // patch**2 for height, width in sizes)
        found["image_ids"] = Ids(patches, f"a picture has {patches} patches", patches)
        return found

    def signature(self):
        text = keras.InputSpec("int32", (None, self.text.length))
        return {**super().signature(), "text": text}

    def needed_inputs(self, use):
        pictures = ("image", "patches")
        return ((*pictures, "text"),) if use == "predict" else (pictures, ("text",))

    # The forward pass ---------------------------------------------------------------------------

    def build_parts(self):
        start = keras.initializers.Constant(-math.log(self.temperature))
        self.logit_scale = self.add_weight(
            shape=(), dtype="float32", initializer=start, autocast=False, name="logit_scale"
        )
        if self.init_logit_bias is not None:
            start = keras.initializers.Constant(self.init_logit_bias)
            self.logit_bias = self.add_weight(
                shape=(), dtype="float32", initializer=start, autocast=False, name="logit_bias"
            )
        for masker in (self.masker, self.text_masker):
            if masker is not None:
                masker.prepare(self)
        super().build_parts()
        self.build_part("masker", self._shape_of("image"))
        self.build_part("text_masker", self._shape_of("text"))
        if self.reconstruction is not None:
            tokens, pixels = (None, None, self.image.dim), 3 * self.image.patch_size**2
            self.build_part("reconstruction", tokens, self.image.grid, pixels)
        self.build_part("image_projection", (None, self.image.dim))
        self.build_part("text_projection", (None, self.text.dim))

    def call(self, inputs, training=False):
        seed, outputs = self.step_seed(training), {}
        with seed_scope(seed):
            if "image" in inputs or "patches" in inputs:
                with keras.name_scope("image"):  # `flipkit profile` finds a part's operations by it
                    outputs |= self._embed_images(inputs, seed)
            if "text" in inputs:
                with keras.name_scope("text"):
                    x, seen = self.seen_of_texts(inputs, seed)
                    features = self.text(x, training=training, **seen)
                    outputs["text"] = _embedding(features, self.text_projection)
        if not outputs:
            raise ConfigurationError(
                "Expected a dict with 'image' or 'patches', 'text', or both. Received the keys: "
                f"{sorted(inputs)}"
            )
        return outputs

    def _embed_images(self, inputs, seed):
        """`image` and, where dropped patches are reconstructed, `reconstruction`: see the class."""
        x, seen, patches = self.seen_of_images(inputs, seed)
        training, rest = seed is not None, {}
        if training and "ids" in seen and self.reconstruction is not None:
            tokens = self.image.tokens(x, training=True, **seen)
            features = self.image.pooled(tokens)
            error = self.reconstruction.error(tokens, patches, self.preprocessing.normalise, **seen)
            rest = {} if error is None else {"reconstruction": error}
        else:
            features = self.image(x, training=training, **seen)
        return {"image": _embedding(features, self.image_projection), **rest}

    @property
    def scale(self):
        """The float32 factor of the cosines: exp(logit_scale), clipped to [1, max_logit_scale]."""
        if self.max_logit_scale is None:
            return ops.exp(self.logit_scale)
        return ops.exp(ops.clip(self.logit_scale, 0.0, math.log(self.max_logit_scale)))

    # Training -----------------------------------------------------------------------------------

    def compile(self, optimizer="adamw", loss="contrastive", **kwargs):
        """As `flipkit.models.Trainable.compile`, which has `microbatch`; builds the model first.

        Args:
            optimizer: a name of flipkit's or Keras's, or an object.
            loss: `flipkit.losses.Loss`: a name or an object.
        """
        if not self.built:
            self.build()
        optimizer = optimizers.get(optimizer)
        inner = optimizers.unscaled(optimizer)
        if getattr(inner, "gradient_accumulation_steps", None):
            raise ConfigurationError(
                "gradient_accumulation_steps does not enlarge a contrastive batch: each part would "
                "see only its own negatives. Set microbatch, which gives the gradient of the whole "
                "batch with the memory of a part. Received: "
                f"gradient_accumulation_steps={inner.gradient_accumulation_steps}"
            )
        loss = losses.get(loss)
        if "logit_bias" in loss.needs and self.logit_bias is None:
            raise ConfigurationError(
                f"{type(loss).__name__} needs a learned bias. Set FLIP(init_logit_bias=-10.0, "
                "temperature=0.1), as SigLIP begins. Received: init_logit_bias=None"
            )
        loss.prepare(self)
        super().compile(optimizer=optimizer, **kwargs)
        self.pair_loss = loss

    @property
    def non_trainable_variables(self):
        """The model's own, and those of its loss: inputs of programs that training does not change."""
        loss = getattr(self, "pair_loss", None)
        return [*super().non_trainable_variables, *(loss.variables if loss else ())]

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "loss": registry.serialize(self.pair_loss)} if self.compiled else config

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        missing = {"image", "text"} - y_pred.keys()
        if missing:
            raise ConfigurationError(f"The loss needs pairs; the batch lacks: {sorted(missing)}")
        needed = {}
        for name in self.pair_loss.needs:
            if name == "inputs":
                needed[name] = x
            elif name == "targets":
                needed[name] = y_pred.get(name) or self.targets(x)
            else:
                needed[name] = getattr(self, name)
        loss = self.pair_loss(y_pred["image"], y_pred["text"], self.scale, **needed)
        if (rebuilt := y_pred.get("reconstruction")) is not None:
            loss += self.reconstruction.weight * ops.mean(rebuilt)
        return sum(self.losses, loss)

    def targets(self, x):
        """Those of the loss: a teacher's embeddings."""
        return self.pair_loss.targets(x)

    @property
    def logged(self):
        """`image_to_text_accuracy`, the share of images nearest to their own text among the batch's
        (`text_to_image_accuracy` the other way round), `logit_scale`, the factor of the cosines, and
        `reconstruction_loss`, the loss of a `flipkit.MAEDecoder`.
        """
        names = ("image_to_text_accuracy", "text_to_image_accuracy", "logit_scale")
        return (*names, "reconstruction_loss") if self.reconstruction is not None else names

    def readings(self):
        return {"scale": self.scale}

    def measure(self, y_pred):
        # Not y_pred.get("scale", self.scale): in a training step the weights have no values here.
        scale = y_pred["scale"] if "scale" in y_pred else self.scale  # noqa: SIM401
        found = pair_accuracies(y_pred["image"], y_pred["text"], scale)
        found["logit_scale"] = scale
        if "reconstruction" in y_pred:
            found["reconstruction_loss"] = y_pred["reconstruction"]
        return found

    # Using it -----------------------------------------------------------------------------------

    def encode_images(self, images, batch_size=64, *, image_ids=None) -> np.ndarray:
        """Pictures -> float32 unit vectors (n, dim).

        Args:
            images: a list of paths, bytes, PIL images or uint8 arrays (height, width, 3) of any
                size, or one uint8 array (n, height, width, 3).
            image_ids: int32 (n, kept), the patches to see of each picture, or (n, views, kept), the
                patches of several views, whose unit vectors are averaged and made unit vectors again;
                None is all. `flipkit.maskers.complementary_views` draws them.
        """
        pixels = self.preprocessing.prepare(images, self.image.image_size)
        if image_ids is None:
            return self.rows({"image": pixels}, "image", batch_size)
        ids = np.asarray(image_ids, "int32")
        if ids.ndim not in (2, 3) or len(ids) != len(pixels):
            raise ConfigurationError(
                f"Expected image_ids of shape ({len(pixels)}, kept) or ({len(pixels)}, views, kept). "
                f"Received: {ids.shape}"
            )
        views = [ids] if ids.ndim == 2 else np.moveaxis(ids, 1, 0)
        found = [
            self.rows({"image": pixels, "image_ids": view}, "image", batch_size) for view in views
        ]
        if len(found) == 1:
            return found[0]
        mean = np.mean(found, axis=0)
        return mean / (np.linalg.norm(mean, axis=1, keepdims=True) + 1e-8)

    def encode_texts(self, texts, batch_size=256) -> np.ndarray:
        """Strings -> float32 unit vectors (n, dim)."""
        if self.tokenizer is None:
            raise ConfigurationError(
                "This model has no tokenizer. Set FLIP(tokenizer='wordpiece')."
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.rows({"text": self.tokenizer(texts, self.text.length)}, "text", batch_size)

    # Saving -------------------------------------------------------------------------------------

    def save_assets(self, folder):
        if self.tokenizer is not None and self.tokenizer.vocab is not None:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            self.tokenizer.save_assets(folder)

    def load_assets(self, folder):
        if self.tokenizer is not None:
            self.tokenizer.load_assets(folder)

    @classmethod
    def from_preset(cls, preset, **options) -> "FLIP":
        """The model in a folder that `save_to_preset` made, or in any other format that
        `flipkit.load_pretrained` reads; `options` are its arguments.
        """
        return importlib.import_module(_WEIGHTS).load_pretrained(preset, **options)

    def save_to_preset(self, preset):
        """Makes the folder `preset`: config.json, model.weights.h5 and the tokenizer's files."""
        importlib.import_module(_WEIGHTS).save_as(self, "preset", preset)


def _embedding(features, projection):
    """Unit vectors of features, through the `projection` if there is one; each device has its rows."""
    features = constrained(features)
    return constrained(_unit(features if projection is None else projection(features)))


def _unit(x):
    """Unit vectors, in float32; finite, and with a finite gradient, for a zero vector too."""
    x = ops.cast(x, "float32")
    norm = ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-30))
    return x / (norm + 1e-8)
