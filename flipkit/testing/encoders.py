"""What an image encoder and a text encoder must do."""

import jax  # to compile what is checked: Keras has no word for it outside of `fit`
import keras
import numpy as np

from flipkit.errors import ConfigurationError
from flipkit.layers import gather, patchify
from flipkit.paths import canonical, matches
from flipkit.sizes import sides
from flipkit.testing.check import (
    Check,
    expect,
    expect_close,
    expect_equal,
    sample_of,
    short,
)
from flipkit.testing.models import PartChecks, tiny


def check_encoder(make, *, expected_failures=None) -> list[Check]:
    """The checks of an image encoder (it tells `image_size`) or of a text encoder (`length`, `vocab`)."""
    kind = _TextEncoderChecks if hasattr(sample_of(make), "length") else _ImageEncoderChecks
    return kind(make).checks(expected_failures)


class _EncoderChecks(PartChecks):
    kind = keras.layers.Layer

    def maps_a_batch_to_features(self):
        for batch in (1, 3):
            encoder = self._built()
            features = np.asarray(encoder(self._x(encoder, batch)), "float32")
            told = f"features (batch, dim) = ({batch}, {encoder.dim})"
            expect(features.shape == (batch, encoder.dim), told, features.shape)
            expect(bool(np.isfinite(features).all()), "finite features", short(features))

    def repeats_itself_at_inference(self):
        encoder = self._built()
        x = self._x(encoder)
        first, again = (np.asarray(encoder(x, training=False)) for _ in range(2))
        expect_equal(again, first, "the same features twice at inference")

    def tells_rows_apart_alone(self):
        encoder = self._built()
        x = self._x(encoder, 4)
        told = "a row's features not to depend on the other rows, to 1e-5"
        expect_close(np.asarray(encoder(x[:2])), np.asarray(encoder(x))[:2], told)

    def compiles_to_the_same(self):
        encoder = self._built()
        x = self._x(encoder)
        compiled = np.asarray(jax.jit(lambda x: encoder(x))(x))
        expect_close(compiled, np.asarray(encoder(x)), "compiled features equal to eager, to 1e-5")

    def works_in_bfloat16(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            encoder = self._built()
            features = np.asarray(encoder(self._x(encoder)), "float32")
        finally:
            keras.config.set_dtype_policy(before)
        expect(bool(np.isfinite(features).all()), "finite features in bfloat16", short(features))
        kept = {v.dtype for v in encoder.trainable_variables}
        expect(kept <= {"float32"}, "weights kept in float32", kept)

    def learns_with_all_its_weights(self):
        encoder = self._built()
        x = keras.ops.convert_to_tensor(self._x(encoder, 4))  # stateless_call hands on what it gets
        target = np.random.default_rng(1).standard_normal((4, encoder.dim)).astype("float32")

        def loss(values):
            outputs, _ = encoder.stateless_call(values, encoder.non_trainable_variables, x)
            return keras.ops.mean((keras.ops.cast(outputs, "float32") - target) ** 2)

        values = [v.value for v in encoder.trainable_variables]
        for variable, gradient in zip(
            encoder.trainable_variables, jax.grad(loss)(values), strict=True
        ):
            gradient, path = np.asarray(gradient), canonical(variable.path)
            expect(bool(np.isfinite(gradient).all()), f"a finite gradient of {path}", "NaN or inf")
            # A key's bias moves all of a query's scores alike: softmax does not see it.
            silent = not gradient.any() and not path.endswith("key/bias")
            expect(not silent, f"{path} to matter to the features", "a gradient of zeros")

    def has_a_layout_that_fits(self):
        encoder = self._built()
        paths = {canonical(v.path): v for v in encoder.trainable_variables}
        for pattern, axes in encoder.layout():
            found = [path for path in paths if matches(pattern, path)]
            expect(found, f"layout() patterns that match variables: {pattern!r}", "none that does")
            for path in found:
                rank = len(paths[path].shape)
                expect(len(axes) == rank, f"{rank} axes for {path}", axes)

    def _built(self):
        encoder = self._make()
        if not encoder.built:
            encoder.build(None)
        return encoder

    def _x(self, encoder, batch=2) -> np.ndarray:
        raise NotImplementedError


class _ImageEncoderChecks(_EncoderChecks):
    def sees_what_it_is_given(self):
        """With ids it sees those patches alone: of an image, or as patches that lie ready."""
        encoder = self._built()
        if not getattr(encoder, "grid", None):
            return  # it tells no grid: it can't skip patches, and FLIP refuses to mask it
        x = self._x(encoder)
        tokens = encoder.grid[0] * encoder.grid[1]
        rng = np.random.default_rng(2)
        ids = np.sort([rng.permutation(tokens)[: tokens // 2] for _ in x], axis=1).astype("int32")
        whole, part = np.asarray(encoder(x)), np.asarray(encoder(x, ids=ids))
        patches = gather(patchify(x, encoder.patch_size), ids)
        told = "the same features of an image with ids and of its patches gathered, to 1e-5"
        expect_close(np.asarray(encoder(patches, ids=ids)), part, told)
        expect(np.abs(whole - part).max() > 0, "other features of half the patches", "the same")
        everything = np.tile(np.arange(tokens, dtype="int32"), (len(x), 1))
        told = "all ids to mean the same as none, to 1e-5"
        expect_close(np.asarray(encoder(x, ids=everything)), whole, told)

    def _x(self, encoder, batch=2):
        height, width = sides(encoder.image_size)
        rng = np.random.default_rng(0)
        return rng.standard_normal((batch, height, width, 3)).astype("float32")

    def _model(self):
        encoder = self._make()
        return tiny(image=encoder, mask_ratio=0.5 if getattr(encoder, "grid", None) else 0.0)


class _TextEncoderChecks(_EncoderChecks):
    def sees_what_it_is_given(self):
        """With `keep` it sees those tokens alone, each where it stands in the whole text."""
        encoder = self._built()
        x = self._x(encoder)
        everything = np.tile(np.arange(encoder.length, dtype="int32"), (len(x), 1))
        half = everything[:, : max(1, encoder.length // 2)]
        try:
            whole, same = np.asarray(encoder(x)), np.asarray(encoder(x, keep=everything))
        except ConfigurationError:
            return  # it can't skip tokens, and says so
        expect_close(same, whole, "all tokens kept to mean the same as none dropped, to 1e-5")
        part = np.asarray(encoder(x, keep=half))
        expect(np.abs(whole - part).max() > 0, "other features of half the tokens", "the same")

    def takes_every_id(self):
        encoder = self._built()
        ids = np.full((1, encoder.length), encoder.vocab - 1, "int32")
        features = np.asarray(encoder(ids), "float32")
        told = f"finite features of id {encoder.vocab - 1}, the last of its vocab"
        expect(bool(np.isfinite(features).all()), told, short(features))

    def _x(self, encoder, batch=2):
        rng = np.random.default_rng(0)
        return rng.integers(1, encoder.vocab, (batch, encoder.length)).astype("int32")

    def _model(self):
        return tiny(text=self._make(), masker=None, mask_ratio=0.0)
