"""A model that sees a part of each picture and text in training: by a mask, or by smaller pictures."""

import inspect
import math

import keras
import numpy as np
from keras import ops

from flipkit import maskers, plugins
from flipkit.checks import Size, as_size, sides
from flipkit.errors import ConfigurationError
from flipkit.layers import gather, patchify
from flipkit.models.trainable import Trainable
from flipkit.random import Seed


class Masked(Trainable):
    """The masks and picture sizes of a model with an image tower and a text tower.

    Attributes:
        masker, text_masker: `flipkit.Masker` or None.
    """

    # How much is kept ---------------------------------------------------------------------------

    @property
    def mask_ratio(self) -> float:
        """Share of patches dropped in training; setting it makes `fit` compile a new step."""
        return self._mask_ratio

    @mask_ratio.setter
    def mask_ratio(self, ratio):
        ratio = checked_ratio("mask_ratio", ratio)
        if self.masker is not None and ratio and not getattr(self.image, "grid", None):
            raise ConfigurationError(
                f"{type(self.image).__name__} cannot skip patches (it has no grid), so it can't be "
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
        self._text_mask_ratio = checked_ratio("text_mask_ratio", ratio)
        self.train_function = None

    @property
    def masks_images(self) -> bool:
        """Whether training drops patches."""
        return self.masker is not None and self.mask_ratio > 0

    @property
    def kept_patches(self) -> int:
        """Patches of an image that training keeps: round(patches * (1 - mask_ratio)), at least 1."""
        return self.kept("image", self.mask_ratio)

    @property
    def kept_tokens(self) -> int:
        """Tokens of a text that training keeps."""
        return self.kept("text", self.text_mask_ratio)

    def kept(self, tower: str, ratio: float) -> int:
        """Tokens that a tower, "image" or "text", would see in training at a mask ratio."""
        image = tower == "image"
        tokens = math.prod(self.grid or ()) if image else self.text.length
        masker = self.masker if image else self.text_masker
        return maskers.kept_count(tokens, 0 if masker is None else ratio)

    def draw_masks(self, images, steps):
        """The patches that training would keep of pictures at some steps: bool (batch, steps, patches).

        It changes no state, such as a masker's own average.

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
                ids = chosen(self.masker, patches, self.kept_patches, self.grid, seed)
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
        """(rows, columns) of the patches of a picture in training; None if the tower has no grid."""
        if not getattr(self.image, "grid", None) or self.image_size is None:
            return getattr(self.image, "grid", None)
        height, width = sides(self.image_size)
        return height // self.image.patch_size, width // self.image.patch_size

    def _grid_of(self, x, training):
        """The grid of `x`, pictures or patches: that of training, at inference the tower's own.

        `evaluate` uses it with pictures of training's size, from a feed's batches.
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
            + "FLIP(image_size=...) sets the size that training sees."
        )

    # What the towers see ------------------------------------------------------------------------

    def seen_of_images(self, inputs, seed):
        """The part of a batch's pictures that the image tower sees.

        Args:
            inputs: the batch: `image`, or `patches` with `image_ids`.
            seed: `flipkit.Seed` in training, else None.

        Returns:
            Normalised pixels; a dict of the tower's further arguments, `ids` where it sees a part and
            `grid` where pictures have another size than the tower's; all patches of the pictures, uint8
            (batch, patches, pixels), or None where they are not known.
        """
        x, ids = inputs.get("patches", inputs.get("image")), inputs.get("image_ids")
        grid, patches = self._grid_of(x, seed is not None), None
        draws = seed is not None and ids is None and "image" in inputs and self.masks_images
        if len(x.shape) == 4 and (draws or ids is not None):
            # Gather raw uint8 patches, so that dropped ones are never converted or embedded.
            patches = patchify(x, self.image.patch_size)
            if draws:
                ids = chosen(self.masker, patches, self.kept_patches, grid, seed.named("masker"))
            x = gather(patches, ids)
        seen = {} if ids is None else {"ids": ids}
        if grid != getattr(self.image, "grid", None):
            seen["grid"] = grid  # only then: an encoder of one size need not have the argument
        return self.preprocessing.normalise(x), seen, patches

    def seen_of_texts(self, inputs, seed):
        """The part of a batch's texts that the text tower sees: ids, and a dict of its further arguments.

        Args:
            inputs: the batch: `text`, and `text_ids`, which tokens to see.
            seed: `flipkit.Seed` in training, else None.
        """
        x, keep = inputs["text"], inputs.get("text_ids")
        if seed is not None and keep is None and self.kept_tokens < self.text.length:
            grid, own = (1, self.text.length), seed.named("text_masker")
            keep = chosen(self.text_masker, x, self.kept_tokens, grid, own)
        return x, {} if keep is None else {"keep": keep}

    # As text ------------------------------------------------------------------------------------

    def image_summary(self) -> str:
        """The part of an image that training keeps: `32 of 64 patches (mask ratio 0.5)`."""
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
        """Facts of this model before it trains, for a table."""
        return {"masking": self.masking_summary()}


def checked_ratio(name, ratio) -> float:
    """A mask ratio as a float; raises if it is no share in [0, 1)."""
    if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ConfigurationError(f"Expected a share in [0, 1). Received: {name}={ratio!r}")
    return float(ratio)


def chosen(masker, x, keep, grid, seed):
    """The ids that `masker` keeps; raises while the program is made if they are no ids of `keep`."""
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
            "Mend it: flipkit.testing.check_masker checks what else a masker must do",
        )
    return ids


def checked_size(size, encoder):
    """A size of pictures as an int or (height, width); raises if the encoder can't take them."""
    size = as_size(size)
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
