"""keras-nlp's backbones as towers: ViT, CLIP's and SigLIP's both halves, BERT and its relatives."""

import functools
import os
from typing import Any

import flipkit  # before keras, whose backend it chooses

# isort: split
import keras
from keras import ops

from flipkit_keras_nlp import presets

registered = keras.saving.register_keras_serializable(package="flipkit_keras_nlp")

TINY = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}  # of the examples


class _Tower(keras.layers.Layer):
    """A backbone of keras-nlp as one of flipkit's towers: the base of the image and the text tower.

    Its config holds the backbone's own, so that a `.keras` file needs no preset. The tower reads its
    weights from `preset` when it is built, and drops `preset` after that.
    """

    part: str  # of a backbone that has an encoder for images and one for texts
    POOLS: tuple[str, ...]

    def __init__(self, preset=None, *, pool=None, backbone=None, **kwargs):
        super().__init__(**kwargs)
        self.preset = None if preset is None else os.fspath(preset)
        if backbone is None and preset is not None:
            backbone = presets.backbone_config(preset, self.part)
        self.backbone, self.pool = backbone, pool
        if pool not in (None, *self.POOLS):
            raise flipkit.ConfigurationError(f"Unknown {pool=}. Known: None, {self.POOLS}")
        if backbone is not None and not self._setting("hidden_dim", "projection_dim"):
            raise flipkit.ConfigurationError(
                f"{self.kind} has no hidden_dim, so that it can't be a tower. Supported are ViT, "
                "CLIP, SigLIP, DINOv2, BERT, RoBERTa and their relatives."
            )

    def _setting(self, *names):
        """The first of these settings that the backbone has."""
        settings = (self.backbone or {}).get("config", {})
        return next((settings[name] for name in names if settings.get(name) is not None), None)

    @property
    def kind(self) -> str | None:
        """The name of the backbone's class."""
        return None if self.backbone is None else self.backbone["class_name"]

    @property
    def dim(self):
        """Length of a feature vector; None as long as there is no preset."""
        return self._setting("projection_dim", "hidden_dim")

    def build(self, input_shape=None):
        if self.backbone is None:
            raise flipkit.ConfigurationError(
                f"{type(self).__name__} needs a preset: a folder, or a name of keras-nlp's. "
                f"Set model.{self.name}.preset=PATH"
            )
        presets.library()  # registers its classes
        with keras.StatelessScope() as scope:
            network = keras.saving.deserialize_keras_object(self._settled(self.backbone))
            _name_weights(network)
            for weight in network.weights:
                # Values that a layer writes while it is built, such as ids of positions, are no initial
                # values to Keras, and would be lost with the scope.
                written = scope.get_current_value(weight)
                if written is not None:
                    flipkit.random.start_with(weight, written)
            if self.preset is not None:
                preset = self.preset
                read = functools.cache(lambda: presets.weights(preset, self.part))
                for i, weight in enumerate(network.weights):
                    flipkit.random.start_with(weight, lambda i=i: read()[i])
            network.trainable = self.trainable
            self.network = network

    def _settled(self, node):
        """A backbone's config in this tower's dtype, and without dropout.

        Keras's dropout keeps a state of its own, and would draw other numbers on other devices.
        """
        config = {
            key: 0.0 if "dropout" in key and isinstance(value, (int, float)) else value
            for key, value in node["config"].items()
        }
        for part in ("vision_encoder", "text_encoder"):
            if part in config:
                config[part] = self._settled(config[part])
        config |= {"dtype": self.dtype_policy.name, "name": None, "trainable": True}
        return {**node, "config": config}

    def layout(self):
        """How a mesh axis "model" may split the weights: not at all."""
        return ()

    def compute_output_shape(self, input_shape, **kwargs):
        return (input_shape[0], self.dim)

    def get_config(self):
        preset = None if self.built else self.preset
        own = {"preset": preset, "pool": self.pool, "backbone": self.backbone}
        return {**super().get_config(), **own}


@registered
class KerasNLPImage(_Tower):
    """Image tower from keras-nlp: pixels (batch, height, width, 3) -> features (batch, dim).

    ViT's and CLIP's vision encoder return the class token's feature, SigLIP's its pooled one, both
    without the projection that follows them in CLIP; these three can skip patches. Others see whole
    images, and FLIP rejects them with a mask.

    Args:
        preset: a preset's folder, or a name of keras-nlp's; the tower starts with its weights.
        pool: None is the backbone's own; "class" or "mean" of all tokens.
        backbone: a backbone's serialised form, in place of the preset's; None reads that.
        kwargs: as in `keras.layers.Layer`: `trainable=False` for a tower that is not trained (LiT),
            `dtype`.

    Call arguments:
        x: float pixels (batch, height, width, 3), or patches (batch, kept, pixels), normalised.
        ids: int32 (batch, kept), which patches to see, or which ones `x` holds; None is all.
    """

    part = "vision_encoder"
    POOLS = ("class", "mean")
    SKIPPING = ("CLIPVisionEncoder", "SigLIPVisionEncoder", "ViTBackbone")

    @classmethod
    def example(cls):
        """A tiny ViT, for `flipkit.testing`."""
        backbone = presets.library().models.ViTBackbone(
            image_shape=(16, 16, 3), patch_size=4, mlp_dim=32, **TINY
        )
        return cls(backbone=flipkit.registry.serialize(backbone))

    @property
    def image_size(self) -> Any:
        """Pixels: (height, width)."""
        shape = self._setting("image_shape")
        return None if shape is None else tuple(shape[:2])

    @property
    def patch_size(self) -> Any:
        """Pixels per side of a patch."""
        size = self._setting("patch_size")
        return size if isinstance(size, int) or size is None else size[0]

    @property
    def grid(self):
        """(rows, columns) of patches, of a backbone that can skip some; None for others."""
        if self.backbone is None:
            return 1, 1  # no preset yet, so nothing to reject
        if self.kind not in self.SKIPPING:
            return None
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    def call(self, x, ids=None, training=False):
        training = training and self.trainable
        if len(x.shape) == 4 and ids is not None:
            x = flipkit.layers.gather(flipkit.layers.patchify(x, self.patch_size), ids)
        if len(x.shape) == 4:
            inputs = {"images": x} if isinstance(self.network.input, dict) else x
            return self._pooled(self.network(inputs, training=training))
        return self._pooled(getattr(self, f"_see_{self.kind}")(x, ids, training))

    def _see_ViTBackbone(self, x, ids, training):
        embedding = self.network.get_layer("vit_patching_and_embedding")
        token = embedding.class_token if embedding.use_class_token else None
        x = _embed(embedding, x, ids, token)
        return self.network.get_layer("vit_encoder")(x, training=training)

    def _see_CLIPVisionEncoder(self, x, ids, training):
        network = self.network
        token = network.embedding.class_embedding[None, None]
        x = network.pre_layer_norm(_embed(network.embedding, x, ids, token))
        for layer in network.encoder_layers:
            x = layer(x, training=training)
        return network.layer_norm(x)

    def _see_SigLIPVisionEncoder(self, x, ids, training):
        network = self.network
        x = _embed(network.embedding, x, ids)
        for layer in network.encoder_layers:
            x = layer(x, training=training)
        return network.head(network.post_layer_norm(x))

    def _pooled(self, x):
        if len(x.shape) == 2:
            return x
        token = self._setting("use_class_token") is not False
        pool = self.pool or ("class" if token else "mean")
        return x[:, 0] if pool == "class" else ops.mean(x, axis=1)


def _embed(embedding, patches, ids, token=None):
    """Patches (batch, kept, pixels) -> tokens (batch, kept [+ 1], dim), as `embedding` makes of all.

    A convolution whose stride is its size is a product with the patches it sees.
    """
    convolution = embedding.patch_embedding
    kernel = ops.reshape(convolution.kernel, (-1, convolution.filters))
    x = ops.matmul(patches, ops.cast(kernel, patches.dtype))
    if convolution.use_bias:
        x = x + ops.cast(convolution.bias, x.dtype)
    positions = ops.cast(embedding.position_embedding(embedding.position_ids)[0], x.dtype)
    first = 0 if token is None else 1
    seen = positions[None, first:] if ids is None else ops.take(positions[first:], ids, axis=0)
    x = x + seen
    if token is None:
        return x
    token = ops.cast(token, x.dtype) + positions[None, :1]
    return ops.concatenate([ops.repeat(token, ops.shape(x)[0], axis=0), x], axis=1)


@registered
class KerasNLPText(_Tower):
    """Text tower from keras-nlp: token ids (batch, length) -> features (batch, dim).

    CLIP's text encoder returns the feature of the largest id, which ends a text, SigLIP's its last
    token's through its head, BERT and its relatives their pooled output where they have one, else
    the first token's feature.

    Args:
        preset, backbone, kwargs: as in `KerasNLPImage`.
        pool: None is the backbone's own; "first", "eos" (the largest id), "mean" of all tokens that are
            no padding, or "pooled".
        length: tokens per text; None is as many as the backbone can take.
        pad: the id of padding, which backbones that take a mask don't see: the tokenizer's.

    Call arguments:
        ids: int32 (batch, length).
    """

    part = "text_encoder"
    POOLS = ("first", "eos", "mean", "pooled")

    @classmethod
    def example(cls):
        """A tiny BERT, for `flipkit.testing`."""
        backbone = presets.library().models.BertBackbone(
            vocabulary_size=60, max_sequence_length=8, intermediate_dim=32, **TINY
        )
        return cls(backbone=flipkit.registry.serialize(backbone))

    def __init__(self, preset=None, *, length=None, pad=0, **kwargs):
        super().__init__(preset, **kwargs)
        self.pad = pad
        most = self._setting("max_sequence_length")
        fixed = self.kind == "SigLIPTextEncoder"
        if length is not None and most is not None and (length > most or (fixed and length < most)):
            raise flipkit.ConfigurationError(
                f"{self.kind} takes {'exactly' if fixed else 'at most'} {most} tokens. "
                f"Received: {length=}"
            )
        self._length = length

    @property
    def length(self):
        """Tokens per text."""
        return self._length or self._setting("max_sequence_length")

    @property
    def vocab(self):
        """Rows of the token table."""
        return self._setting("vocabulary_size")

    def call(self, ids, keep=None, training=False):
        if keep is not None:
            raise flipkit.ConfigurationError(
                f"{self.kind} can't skip tokens: its positions are those of whole texts. Set "
                "text_mask_ratio=0."
            )
        words = ops.cast(ops.not_equal(ids, self.pad), "int32")
        fields = {"token_ids": ids, "padding_mask": words, "segment_ids": ops.zeros_like(ids)}
        inputs = {name: fields[name] for name in self.network.input}
        x = self.network(inputs, training=training and self.trainable)
        pool = self.pool or ("eos" if self.kind == "CLIPTextEncoder" else None)
        if isinstance(x, dict):
            if pool in (None, "pooled") and "pooled_output" in x:
                return x["pooled_output"]
            x = x["sequence_output"]
        if len(x.shape) == 2:
            return x
        if pool == "eos":
            place = ops.argmax(ids, axis=1)[:, None]
            return ops.squeeze(flipkit.layers.gather(x, place), axis=1)
        if pool == "mean":
            words = ops.cast(words, x.dtype)[..., None]
            return ops.sum(x * words, axis=1) / ops.maximum(ops.sum(words, axis=1), 1)
        return x[:, 0]

    def get_config(self):
        return {**super().get_config(), "length": self._length, "pad": self.pad}


def _name_weights(network):
    """Names the weight that keras-hub 0.32 leaves without a name (the probe of SigLIP's pooling).

    Keras would number it in the order of creation, and a checkpoint would not find it again.
    """
    for weight in network.weights:
        if weight.name.partition("_")[0] == "variable":
            flipkit.keras_inside.rename(weight, "weight")
