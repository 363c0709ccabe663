"""Counts parameters, tokens and FLOPs of a model's encoders."""

import contextlib
import math
from typing import Any

import jax  # traces programs without running them, which Keras cannot
import keras
from keras import ops

from flipkit import keras_inside
from flipkit.checks import sides
from flipkit.encoders import shape_only
from flipkit.layers import Attention
from flipkit.planning.counting import flops

MASKS = ("mask_ratio", "text_mask_ratio")
_ROWS = 2  # of a traced batch, divided out again: one row alone might be squeezed away


class Towers:
    """Counts parameters, tokens and FLOPs of the encoders of a model, image and text or one of them.

    FLOPs are those of matrix products and convolutions. They leave out the loss over a whole batch:
    6 * batch * dim a pair, a hundredth of a step at the paper's sizes.

    Args:
        model: `flipkit.FLIP` or another with encoders. The class makes a copy without memory for weights.
        image_size: of the pictures, as in `flipkit.FLIP`; None is that of the tower.
    """

    def __init__(self, model, image_size=None):
        self.model = shape_only(model)
        self.image_size = image_size or model.image.image_size
        if hasattr(model, "image_size"):
            self.model.image_size = image_size
        for layer in keras_inside.layers_of(self.model):
            if isinstance(layer, Attention):
                layer.impl = "einsum"  # the same products as the fused kernels, on every machine
        self.encoders = self.model.encoders()
        self._forward, self._training = {}, {}  # traced once for a tower and what it keeps

    @property
    def parameters(self) -> int:
        """Numbers in the model's weights, learned and frozen."""
        return _size(self.model) - 1  # the count of steps is no parameter

    @property
    def masks(self) -> bool:
        """Whether training can drop patches."""
        return hasattr(self.model, "mask_ratio") and bool(getattr(self.model.image, "grid", None))

    def summary(self, tower) -> dict:
        """Returns the parameters and tokens of a tower."""
        encoder, head = self.encoders[tower], getattr(self.model, f"{tower}_projection", None)
        found = {
            "encoder": type(encoder).__name__,
            "parameters": _size(encoder),
            "with_projection": _size(encoder) + (_size(head) if head else 0),
            "tokens": self.tokens(tower, 0.0),
        }
        fixed = getattr(encoder, "position", None)
        if fixed is not None and not isinstance(fixed, keras.Variable):
            # The official code stores fixed positions, and a row of zeros for the class token, as
            # parameters, which Table 9 counts.
            rows = len(fixed) + _class_tokens(encoder)
            found["with_fixed_positions"] = _size(encoder) + rows * fixed.shape[-1]
        return found

    def kept(self, tower, ratio) -> int | None:
        """Returns how many patches or tokens training keeps; None for an image encoder without a grid."""
        if hasattr(self.model, "kept") and (tower == "text" or self.masks):
            return self.model.kept(tower, ratio)
        return math.prod(self.grid) if self.grid else None

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of a picture's patches; None for an encoder that declares none."""
        return getattr(self.model, "grid", getattr(self.model.image, "grid", None))

    def tokens(self, tower, ratio) -> int | None:
        """Returns how many tokens the blocks process: those kept, and the image tower's class token."""
        kept = self.kept(tower, ratio)
        return None if kept is None else kept + _class_tokens(self.encoders[tower])

    def forward(self, tower, ratio=0.0) -> int:
        """Returns the FLOPs of an encoder for one image or text."""
        kept = self.kept(tower, ratio)
        if (tower, kept) not in self._forward:
            inputs = self._words if tower == "text" else self._patches
            resized = tower == "image" and self.grid != getattr(self.model.image, "grid", None)
            static: dict[str, Any] = {"grid": self.grid} if resized else {}
            self._forward[tower, kept] = _flops_of_layer(
                self.encoders[tower], *inputs(kept), **static
            )
        return self._forward[tower, kept]

    def training(self, ratio=0.0, text_ratio=0.0) -> dict[str, int]:
        """Returns the FLOPs of training on a pair, forward and backward, by tower.

        They include a tower's projection or reconstruction, and what `remat` computes again.
        """
        found = {}
        with self._masked(ratio, text_ratio):
            for tower, share in self._ratios(ratio, text_ratio):
                kept = self.kept(tower, share)
                if (tower, kept) not in self._training:
                    x = self._pixels("uint8") if tower != "text" else self._words(None)[0]
                    batch = dict.fromkeys(self.model.towers[tower], x)
                    self._training[tower, kept] = _flops_of_layer(self.model, batch, training=True)
                found[tower] = self._training[tower, kept]
        return found

    @contextlib.contextmanager
    def _masked(self, *ratios):
        """Inside it the copy has these mask ratios, if its class has mask ratios."""
        own = {name: getattr(self.model, name) for name in MASKS if hasattr(self.model, name)}
        for name, ratio in zip(own, ratios, strict=False):
            setattr(self.model, name, ratio if name != "mask_ratio" or self.masks else own[name])
        try:
            yield
        finally:
            for name, ratio in own.items():
                setattr(self.model, name, ratio)

    def masking(self, ratio, text_ratio=0.0) -> dict:
        """Returns tokens and FLOPs of a forward pass at a mask ratio, and its ratio to one without masks.

        flipkit embeds the patches that it keeps. The official code embeds all of them and drops some
        afterwards. The paper's figures count that: `official_image_ratio`, `official_ratio`.
        """
        ratios = dict(self._ratios(ratio, text_ratio))
        costs = {tower: self.forward(tower, share) for tower, share in ratios.items()}
        whole = {tower: self.forward(tower) for tower in ratios}
        dropped = (self.kept("image", 0.0) or 0) - (self.kept("image", ratio) or 0)
        embedding = dropped and dropped * self._embedding()
        flops, unmasked = sum(costs.values()), sum(whole.values())
        return {
            "mask_ratio": ratio,
            "tokens": {tower: self.tokens(tower, share) for tower, share in ratios.items()},
            "flops_by_tower": costs,
            "flops": flops,
            "image_ratio": costs["image"] / whole["image"],
            "ratio": flops / unmasked,
            "official_image_ratio": (costs["image"] + embedding) / whole["image"],
            "official_ratio": (flops + embedding) / unmasked,
        }

    def _ratios(self, ratio, text_ratio):
        return zip(self.encoders, (ratio, text_ratio), strict=False)  # there may be no text tower

    def _embedding(self):
        """Returns the FLOPs of embedding a patch."""
        layer = getattr(self.model.image, "patch_embed", None)
        dense = isinstance(layer, keras.layers.Dense)
        return _flops_of_layer(layer, self._patches(1)[0]) if dense else 0

    # Inputs, as shapes

    def _pixels(self, dtype):
        height, width = sides(self.image_size)
        return jax.ShapeDtypeStruct((_ROWS, height, width, 3), dtype)

    def _patches(self, kept):
        if kept is None or kept == math.prod(self.grid or ()):
            return self._pixels("float32"), {}
        pixels = 3 * self.model.image.patch_size**2
        patches = jax.ShapeDtypeStruct((_ROWS, kept, pixels), "float32")
        return patches, {"ids": jax.ShapeDtypeStruct((_ROWS, kept), "int32")}

    def _words(self, kept):
        length = self.model.text.length
        ids = jax.ShapeDtypeStruct((_ROWS, length), "int32")
        if kept in (None, length):
            return ids, {}
        return ids, {"keep": jax.ShapeDtypeStruct((_ROWS, kept), "int32")}


def _class_tokens(encoder):
    return int(bool(getattr(encoder, "class_token", False)))


def _size(layer):
    """Returns how many numbers a layer's weights hold, learned and frozen."""
    return sum(math.prod(variable.shape) for variable in layer.weights)


def _flops_of_layer(layer, x, rest=None, *, training=False, **static):
    """Returns the FLOPs of a layer for one row of its input; `training` adds the backward pass."""
    learned, others = (
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    )

    def total(learned, others, x, rest):
        outputs, _ = layer.stateless_call(learned, others, x, **rest, **static, training=training)
        return sum(ops.sum(ops.cast(output, "float32")) for output in jax.tree.leaves(outputs))

    function = jax.value_and_grad(total) if training else total
    return flops(function, learned, others, x, rest or {}) // _ROWS
