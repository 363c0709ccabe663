"""FLIP: two towers, a masker and a loss, with its preprocessing and its tokenizer inside."""

import importlib
import inspect
import math
import pathlib
import zipfile

import keras
import numpy as np
from keras import ops

from flipkit import (
    checks,
    encoders,
    losses,
    maskers,
    optimizers,
    paths,
    plugins,
    registry,
    tokenizers,
)
from flipkit import classifier as classifier  # a file may hold one: Keras has to know its class
from flipkit import reconstruction as reconstructions
from flipkit.errors import ConfigurationError
from flipkit.inputs import Ids, Pixels
from flipkit.layers import gather, patchify
from flipkit.metrics import TRAINING, PairMetrics
from flipkit.preprocessing import get as get_preprocessing
from flipkit.random import Seed, checked_seed, initial_values, seed_scope
from flipkit.registry import register
from flipkit.sizes import Size, is_size, sides
from flipkit.train_step import TrainStep

HEADS = ("linear", "affine", None)
# It knows the model and not the other way round; so methods that need it call it by name.
_WEIGHTS = "flipkit.weights"


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
        image_size: pixels of the pictures in training, one side or (height, width), divisible by the
            patch size: the other way to fewer tokens (RECLIP, arXiv 2304.06028; CLIPA, arXiv 2305.07017).
            None is the tower's own, which `encode_images` sees in any case. The patches of another size
            have the tower's positions resampled, as told in `flipkit.ViT`; CLIPA's code numbers the
            patches of each size from 0 instead, so that the middle is elsewhere when the size changes.
        dim: width of the embedding both towers are projected to.
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
        frozen: patterns of variables that training leaves as they are, as in `flipkit.paths`: `["image"]`
            is the image tower (LiT, arXiv 2111.07991); a `flipkit.Phase` may change them.
        preprocessing: `flipkit.Preprocessing`: how pixels become numbers.
        tokenizer: how strings become ids: a name, an object or None.
        seed: int in [0, 2^64), what masks, dropout and initial weights are functions of; None takes the
            seed of the `flipkit.Run`, and 0 outside a run.

    Call arguments:
        inputs: a dict with `image` (uint8, batch x height x width x 3) or `patches` (uint8, batch x
            kept x pixels) with `image_ids` (int32, batch x kept), and `text` (int32, batch x length),
            optionally with `text_ids`. `image_ids` beside `image` selects patches. A model that gets
            no ids draws its own, in training only. Without `text`, or without an image, the other
            alone is embedded.

    Returns:
        A dict of float32 unit vectors: `image` (batch, dim), `text` (batch, dim); in training, where
        dropped patches are reconstructed, also `reconstruction` (batch,), the error of that.
    """

    reads = "text"
    default_loss = "contrastive"

    def __init__(
        self,
        image,
        text,
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
        for role in ("image", "text", "masker", "text_masker"):
            part = getattr(self, role)
            if part is not None and not part.built:
                part.name = role  # variables are called image/..., whoever made the part
        self.reconstruction = reconstructions.get(reconstruction)
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
        self.seed = None if seed is None else checked_seed(seed)
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.image_size = image_size
        self.preprocessing = get_preprocessing(preprocessing)
        self.tokenizer = tokenizers.get(tokenizer)
        self.image_head, self.text_head = image_head, text_head
        self.max_logit_scale, self.init_logit_bias = max_logit_scale, init_logit_bias
        self.logit_bias = None  # made by build, if there is one
        self.image_projection = self._head("image_projection", self.image, image_head)
        self.text_projection = self._head("text_projection", self.text, text_head)
        self._held = ()  # paths of the variables that `frozen` has taken out of training
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
        ratio = self.mask_ratio if self.masker else 0
        return maskers.kept_count(math.prod(self.grid or ()), ratio)

    @property
    def kept_tokens(self) -> int:
        """Tokens of a text that training keeps."""
        ratio = self.text_mask_ratio if self.text_masker else 0
        return maskers.kept_count(self.text.length, ratio)

    def draw_masks(self, images, steps):
        """What training would keep of pictures at some steps: bool (batch, steps, patches).

        Nothing is changed by it, such as a masker's own average.

        Args:
            images: uint8 (batch, height, width, 3), of the size that training sees.
            steps: the steps, counted as `step` counts them.
        """
        if not self.masks_images:
            raise ConfigurationError(
                f"Training keeps every patch. Received: masker={self.masker}, "
                f"mask_ratio={self.mask_ratio}"
            )
        if not self.built:
            self.build()
        patches = patchify(images, self.image.patch_size)
        masks = np.zeros((len(images), len(steps), patches.shape[1]), bool)
        for place, step in enumerate(steps):
            seed = Seed(self.seed or 0, step).named("masker")
            with keras.StatelessScope():
                ids = _chosen(self.masker, patches, self.kept_patches, self.grid, seed)
            np.put_along_axis(masks[:, place], ops.convert_to_numpy(ids), values=True, axis=1)
        return masks

    # Another size -------------------------------------------------------------------------------

    @property
    def image_size(self) -> Size | None:
        """Pixels of the pictures in training, None the tower's own; setting it makes `fit` compile
        a new step.
        """
        return self._image_size

    @image_size.setter
    def image_size(self, size):
        if size is not None:
            size = checked_size(size, self.image)
        self._image_size = size
        self.train_function = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patches of a picture in training; None where the tower tells no grid."""
        if not getattr(self.image, "grid", None) or self.image_size is None:
            return getattr(self.image, "grid", None)
        height, width = sides(self.image_size)
        return height // self.image.patch_size, width // self.image.patch_size

    def _grid_of(self, x, training):
        """The grid of `x`, pictures or patches: that of training, at inference the tower's own.

        Pictures as training has them can be judged too, as `evaluate` does with a feed's batches.
        """
        own = getattr(self.image, "grid", None)
        if not own or len(x.shape) != 4:
            return self.grid if training else own
        seen, expected = tuple(x.shape[1:3]), sides(self.image_size or self.image.image_size)
        if seen == expected:
            return self.grid
        if not training and seen == sides(self.image.image_size):
            return own
        raise ConfigurationError(
            "Expected pictures of {} x {} pixels. Received: {} x {}. ".format(*expected, *seen)
            + "FLIP(image_size=...) says which size training sees."
        )

    # What is fed --------------------------------------------------------------------------------

    def expected_inputs(self, training):
        """Of pictures, patches, texts and what to see of them; at inference pictures of the tower's
        own size too.
        """
        own, patch = sides(self.image.image_size), getattr(self.image, "patch_size", None)
        sizes = {sides(self.image_size or own)} | (set() if training else {own})
        found: dict = {"text": Ids(self.text.vocab, _table_of(self.text), self.text.length)}
        found["text_ids"] = Ids(self.text.length, "a place in the text", self.text.length)
        if not self.grid:
            return {"image": Pixels(), **found}
        remedy = "FLIP(image_size=...) says which size training sees."
        found["image"] = Pixels(tuple(sorted(sizes)), remedy=remedy)
        found["patches"] = Pixels(pixels=3 * patch**2)
        patches = max(height * width // patch**2 for height, width in sizes)
        found["image_ids"] = Ids(patches, f"a picture has {patches} patches", patches)
        return found

    def signature(self):
        image = (None, *sides(self.image.image_size), 3)
        return {
            "image": keras.InputSpec("uint8", image),
            "text": keras.InputSpec("int32", (None, self.text.length)),
        }

    def needed_inputs(self, use):
        pictures = ("image", "patches")
        return ((*pictures, "text"),) if use == "predict" else (pictures, ("text",))

    # Freezing -----------------------------------------------------------------------------------

    @property
    def frozen(self) -> list[str]:
        """Patterns of variables that training leaves as they are: no gradient, no moments.

        Where setting it changes what is trained, the model has to be compiled again.
        """
        return list(self._frozen)

    @frozen.setter
    def frozen(self, patterns):
        patterns = paths.checked_patterns("frozen", patterns)
        if self.built:
            self._freeze(patterns)
        self._frozen = tuple(patterns)

    def _freeze(self, patterns):
        known = {paths.canonical(variable.path): variable for variable in self.variables}
        chosen = paths.select(patterns, known, role="frozen")
        before = set(self._held)
        for path in self._held:
            known[path].trainable = True
        self._held = tuple(path for path in chosen if known[path].trainable)
        for path in self._held:
            known[path].trainable = False
        if set(self._held) != before:
            self.compiled, self.train_function = False, None  # made for other variables

    def learning_summary(self) -> str:
        """One line: how many numbers training changes, of how many, and what it leaves as it is."""
        learned, known = (
            sum(math.prod(v.shape) for v in variables if v is not self.step)
            for variables in (self.trainable_weights, self.weights)
        )
        kept = f" Frozen: {', '.join(self._frozen)}." if self._frozen else ""
        return f"Training changes {learned:,} of {known:,} numbers.{kept}"

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
            if self.init_logit_bias is not None:
                start = keras.initializers.Constant(self.init_logit_bias)
                self.logit_bias = self.add_weight(
                    shape=(), dtype="float32", initializer=start, autocast=False, name="logit_bias"
                )
            images, texts = (None, *sides(self.image.image_size), 3), (None, self.text.length)
            parts = {self.image: images, self.text: texts}
            parts |= {self.masker: images, self.text_masker: texts}
            for masker in (self.masker, self.text_masker):
                if masker is not None:
                    masker.prepare(self)
            for part, shape in parts.items():
                if part is not None and not part.built:
                    part.build(shape)
            if self.reconstruction is not None and not self.reconstruction.built:
                pixels = 3 * self.image.patch_size**2
                self.reconstruction.build((None, None, self.image.dim), self.image.grid, pixels)
            for encoder, projection in (
                (self.image, self.image_projection),
                (self.text, self.text_projection),
            ):
                if projection is not None and not projection.built:
                    projection.build((None, encoder.dim))
        for tower in (self.image, self.text):
            if not tower.trainable:
                tower.trainable = False  # Keras asks only what was made since; this tells all of it
        self._freeze(self._frozen)

    def call(self, inputs, training=False):
        seed = Seed(self.seed or 0, self.step) if training else None
        outputs = {}
        with seed_scope(seed):
            if "image" in inputs or "patches" in inputs:
                outputs |= self._embed_image(inputs, seed)
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
        patches = None  # all of them, where they are known
        grid = self._grid_of(x, seed is not None)
        draws = seed is not None and ids is None and "image" in inputs and self.masks_images
        if len(x.shape) == 4 and (draws or ids is not None):
            # Raw uint8 patches are gathered, so that what is dropped is never converted or embedded.
            patches = patchify(x, self.image.patch_size)
            if draws:
                own = seed.named("masker")
                ids = _chosen(self.masker, patches, self.kept_patches, grid, own)
            x = gather(patches, ids)
        x = self.preprocessing.normalise(x)
        training, outputs = seed is not None, {}
        # Only then: an encoder of one size need not know the argument.
        resized = {} if grid == getattr(self.image, "grid", None) else {"grid": grid}
        if training and ids is not None and self.reconstruction is not None:
            tokens = self.image.tokens(x, ids=ids, training=True, **resized)
            features = self.image.pooled(tokens)
            outputs = self._reconstruct(tokens, ids, patches, **resized)
        elif ids is None:
            features = self.image(x, training=training, **resized)
        else:
            features = self.image(x, ids=ids, training=training, **resized)
        features = self.image_projection(features) if self.image_projection else features
        return {"image": _unit(features), **outputs}

    def _reconstruct(self, tokens, ids, patches, **resized):
        if patches is None:
            raise ConfigurationError(
                "What the host has dropped can't be reconstructed: give images with image_ids instead "
                "of patches, or set reconstruction=None."
            )
        if ids.shape[1] == patches.shape[1]:
            return {}
        predicted = self.reconstruction(tokens, ids, training=True, **resized)
        dropped = reconstructions.dropped_ids(ids, patches.shape[1])
        pixels = self.preprocessing.normalise(gather(patches, dropped))
        return {"reconstruction": self.reconstruction.loss(predicted, pixels)}

    def _embed_text(self, inputs, seed):
        x, keep = inputs["text"], inputs.get("text_ids")
        if seed is not None and keep is None and self.kept_tokens < self.text.length:
            grid, own = (1, self.text.length), seed.named("text_masker")
            keep = _chosen(self.text_masker, x, self.kept_tokens, grid, own)
        training = seed is not None
        features = (
            self.text(x, training=training)
            if keep is None
            else self.text(x, keep=keep, training=training)
        )
        return _unit(self.text_projection(features) if self.text_projection else features)

    @property
    def scale(self):
        """The float32 factor of the cosines: exp(logit_scale), clipped to [1, max_logit_scale]."""
        if self.max_logit_scale is None:
            return ops.exp(self.logit_scale)
        return ops.exp(ops.clip(self.logit_scale, 0.0, math.log(self.max_logit_scale)))

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
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
        left = (v for v in self.variables if not v.trainable)
        inner.frozen = tuple(paths.canonical(variable.path) for variable in left)
        if getattr(inner, "gradient_accumulation_steps", None):
            raise ConfigurationError(
                "gradient_accumulation_steps does not enlarge a contrastive batch: each part would "
                "see only its own negatives. Take a larger batch_size. Received: "
                f"gradient_accumulation_steps={inner.gradient_accumulation_steps}"
            )
        loss = losses.get(loss)
        if "logit_bias" in loss.needs and self.logit_bias is None:
            raise ConfigurationError(
                f"{type(loss).__name__} needs a learned bias. Set FLIP(init_logit_bias=-10.0, "
                "temperature=0.1), as SigLIP begins. Received: init_logit_bias=None"
            )
        loss.prepare(self)
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        self.pair_loss = loss
        more = ["reconstruction_loss"] if self.reconstruction else ()
        self.pair_metrics = PairMetrics(more, self.optimizer)

    @property
    def metrics(self):
        """The loss, the pair metrics, and what `compile(metrics=...)` added."""
        mine = self.pair_metrics.means.values() if self.compiled else ()
        return [*super().metrics, *mine]

    @property
    def non_trainable_variables(self):
        """The model's own, and those of its loss: what programs are given and don't learn."""
        loss = getattr(self, "pair_loss", None)
        return [*super().non_trainable_variables, *(loss.variables if loss else ())]

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "loss": registry.serialize(self.pair_loss)} if self.compiled else config

    def readings(self):
        return {"scale": self.scale}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        missing = {"image", "text"} - y_pred.keys()
        if missing:
            raise ConfigurationError(f"The loss needs pairs; the batch lacks: {sorted(missing)}")
        needs = self.pair_loss.needs
        needed = {name: x if name == "inputs" else getattr(self, name) for name in needs}
        loss = self.pair_loss(y_pred["image"], y_pred["text"], self.scale, **needed)
        if (rebuilt := y_pred.get("reconstruction")) is not None:
            loss += self.reconstruction.weight * ops.mean(rebuilt)
        return sum(self.losses, loss)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # Not y_pred.get("scale", self.scale): in a training step the weights have no values here.
        scale = y_pred["scale"] if "scale" in y_pred else self.scale  # noqa: SIM401
        self.pair_metrics.update(y_pred, scale)
        results = self.get_metrics_result()
        for name, key in TRAINING.items():
            if key not in y_pred:  # an evaluation, or nothing was dropped
                results.pop(name, None)
        return results

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
        size = sides(self.image.image_size)
        pixels = self.preprocessing.prepare(images, size[0] if size[0] == size[1] else size)
        if image_ids is None:
            return self._encode({"image": pixels}, batch_size)
        ids = np.asarray(image_ids, "int32")
        if ids.ndim not in (2, 3) or len(ids) != len(pixels):
            raise ConfigurationError(
                f"Expected image_ids of shape ({len(pixels)}, kept) or ({len(pixels)}, views, kept). "
                f"Received: {ids.shape}"
            )
        views = [ids] if ids.ndim == 2 else np.moveaxis(ids, 1, 0)
        found = [self._encode({"image": pixels, "image_ids": view}, batch_size) for view in views]
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
        return self._encode({"text": self.tokenizer(texts, self.text.length)}, batch_size)

    def _encode(self, inputs, batch_size):
        if not self.built:
            self.build()
        key = next(iter(inputs))  # the tower's name
        count = len(inputs[key])
        if not count:
            return np.zeros((0, self.dim), "float32")
        # Batches of few sizes: a power of two below batch_size, so that few programs are compiled.
        size = min(batch_size, max(8, 1 << (count - 1).bit_length()))
        padded = {
            name: np.concatenate([rows, np.repeat(rows[-1:], -count % size, axis=0)])
            for name, rows in inputs.items()
        }
        outputs = self.predict(padded, batch_size=size, verbose=0)
        return np.asarray(outputs[key][:count])

    def summary(self, *args, print_fn=None, **kwargs):
        """Keras's summary, how many patches and tokens training keeps, how many numbers it changes."""
        if not self.built:
            self.build()
        super().summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(self.masking_summary())
        (print_fn or print)(self.learning_summary())

    def image_summary(self) -> str:
        """What training keeps of an image: `32 of 64 patches (mask ratio 0.5)`."""
        if not getattr(self.image, "grid", None):
            return "the whole image"
        patches = f"{self.kept_patches} of {math.prod(self.grid or ())} patches"
        if self.image_size is not None:
            patches += " of {} x {} pixels".format(*sides(self.image_size))
        return f"{patches} (mask ratio {self.mask_ratio:g})"

    def masking_summary(self) -> str:
        """One line: how many patches and tokens training keeps."""
        tokens = f"{self.kept_tokens} of {self.text.length} text tokens"
        return f"Training keeps {self.image_summary()} and {tokens}."

    def facts(self) -> dict[str, str]:
        """What to know of this model before it trains, for a table."""
        return {"masking": self.masking_summary()}

    # Saving -------------------------------------------------------------------------------------

    def get_config(self):
        names = ("masker", "mask_ratio", "text_masker", "text_mask_ratio", "dim", "image_head")
        names += ("text_head", "temperature", "max_logit_scale", "init_logit_bias", "frozen")
        names += ("image_size",)
        config = {n: getattr(self, n) for n in ("image", "text", *names, "seed")}
        config["reconstruction"] = self.reconstruction
        config |= {"preprocessing": self.preprocessing, "tokenizer": self.tokenizer}
        config = registry.serialize(config)
        for part in ("image", "text", "masker", "text_masker", "reconstruction"):
            if config[part] is not None:
                config[part].pop("build_config", None)  # FLIP builds its parts itself
        config |= {"name": self.name, "dtype": registry.serialize(self.dtype_policy)}
        return {**config, **self._quantized_config()}

    def save_assets(self, folder):
        if self.tokenizer is not None and self.tokenizer.vocab is not None:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            self.tokenizer.save_assets(folder)

    def load_assets(self, folder):
        if self.tokenizer is not None:
            self.tokenizer.load_assets(folder)

    @classmethod
    def from_preset(cls, preset, **options) -> "FLIP":
        """The model in a folder that `save_to_preset` made, or in whatever else
        `flipkit.load_pretrained` reads; `options` are its own.
        """
        return importlib.import_module(_WEIGHTS).load_pretrained(preset, **options)

    def save_to_preset(self, preset):
        """Makes the folder `preset`: config.json, model.weights.h5 and the tokenizer's files."""
        importlib.import_module(_WEIGHTS).save_as(self, "preset", preset)


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


def _chosen(masker, x, keep, grid, seed):
    """The ids that `masker` keeps; refused while the program is made if they are no ids of `keep`."""
    try:
        ids = masker(x, keep=keep, grid=grid, seed=seed)
    except Exception as problem:
        plugins.note_owner("maskers", masker, problem)
        raise
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if tuple(ids.shape[1:]) != (keep,) or dtype != "int32":
        raise plugins.error_in_use(
            "maskers",
            masker,
            f"Expected {type(masker).__name__} to return int32 ids (batch, {keep}). Received: {dtype} "
            f"{tuple(ids.shape)}",
            "Mend it: flipkit.testing.check_masker tells what else a masker must do",
        )
    return ids


def _table_of(text):
    return f"the text tower's vocab is {text.vocab:,}"


def checked_size(size, encoder):
    """A size of pictures as an int or (height, width); refused if the encoder can't see them."""
    if not is_size(size):
        raise ConfigurationError(
            f"Expected pixels, one side or (height, width). Received: image_size={size!r}"
        )
    size = tuple(size) if isinstance(size, list) else size
    if sides(size) == sides(encoder.image_size):
        return size
    takes = inspect.signature(encoder.call).parameters
    if not getattr(encoder, "grid", None) or "grid" not in takes:
        raise ConfigurationError(
            f"{type(encoder).__name__} sees pictures of one size (its call takes no `grid`). Expected "
            f"image_size=None or {encoder.image_size}. Received: image_size={size}"
        )
    patch = encoder.patch_size
    odd = [side for side in sides(size) if side % patch]
    if odd:
        below = odd[0] // patch * patch
        raise ConfigurationError(
            f"Expected an image size divisible by the patch size. Received: image_size={size} and "
            f"patch_size={patch}; the nearest sizes are {sorted({below, below + patch} - {0})}"
        )
    return size


def _unit(x):
    """Unit vectors, in float32; finite, and with a finite gradient, for a zero vector too."""
    x = ops.cast(x, "float32")
    norm = ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-30))
    return x / (norm + 1e-8)
