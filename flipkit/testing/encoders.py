"""The checks of an image encoder and of a text encoder."""

import functools

import jax  # to compile the encoder: Keras compiles in `fit` alone
import keras
import numpy as np

from flipkit.checks import sides
from flipkit.errors import ConfigurationError
from flipkit.layers import gather, patchify
from flipkit.paths import canonical, matches
from flipkit.testing.check import Check, expect, expect_close, expect_equal, sample_of, short
from flipkit.testing.holding import PartChecks, quickly_compiled, tiny


def check_encoder(make, *, expected_failures=None) -> list[Check]:
    """Returns the checks of an image encoder (has `image_size`) or a text encoder (`length`, `vocab`)."""
    kind = _TextEncoderChecks if hasattr(sample_of(make), "length") else _ImageEncoderChecks
    return kind(make).checks(expected_failures)


class _EncoderChecks(PartChecks):
    kind = keras.layers.Layer

    def maps_a_batch_to_features(self):
        for batch in (1, 4):
            features = self._features(self._x(batch))
            expected = f"features (batch, dim) = ({batch}, {self._encoder.dim})"
            expect(features.shape == (batch, self._encoder.dim), expected, features.shape)
            expect(bool(np.isfinite(features).all()), "finite features", short(features))

    def repeats_itself_at_inference(self):
        first, again = self._at_first, self._eager()
        expect_equal(again, first, "the same features twice at inference")

    def tells_rows_apart_alone(self):
        x = self._x(4)
        expected = "a row's features not to depend on the other rows, to 1e-5"
        expect_close(self._features(x[:1]), self._features(x)[:1], expected)

    def compiles_to_the_same(self):
        expected = "compiled features equal to eager, to 1e-5"
        expect_close(self._features(self._x(1)), self._at_first, expected)

    def works_in_bfloat16(self):
        before, x = keras.config.dtype_policy(), self._x(1)  # `_x` makes the float32 encoder
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            encoder = self._built()
            features = _compiled(encoder)(x)
        finally:
            keras.config.set_dtype_policy(before)
        expect(bool(np.isfinite(features).all()), "finite features in bfloat16", short(features))
        kept = {v.dtype for v in encoder.trainable_variables}
        expect(kept <= {"float32"}, "weights kept in float32", kept)

    def learns_with_all_its_weights(self):
        encoder, x = self._encoder, self._x(4)
        target = np.random.default_rng(1).standard_normal((4, encoder.dim)).astype("float32")

        def loss(values, others):
            outputs, _ = encoder.stateless_call(values, others, keras.ops.convert_to_tensor(x))
            return keras.ops.mean((keras.ops.cast(outputs, "float32") - target) ** 2)

        with quickly_compiled():
            gradients = jax.jit(jax.grad(loss))(*_values(encoder))
        for variable, gradient in zip(encoder.trainable_variables, gradients, strict=True):
            gradient, path = np.asarray(gradient), canonical(variable.path)
            expect(bool(np.isfinite(gradient).all()), f"a finite gradient of {path}", "NaN or inf")
            # A key's bias adds the same to all scores of a query, which softmax cancels.
            silent = not gradient.any() and not path.endswith("key/bias")
            expect(not silent, f"{path} to matter to the features", "a gradient of zeros")

    def has_a_layout_that_fits(self):
        encoder = self._encoder
        paths = {canonical(v.path): v for v in encoder.trainable_variables}
        for pattern, axes in encoder.layout():
            found = [path for path in paths if matches(pattern, path)]
            expect(found, f"layout() patterns that match variables: {pattern!r}", "none that does")
            for path in found:
                rank = len(paths[path].shape)
                expect(len(axes) == rank, f"{rank} axes for {path}", axes)

    @functools.cached_property
    def _encoder(self):
        """One encoder for all checks except `works_in_bfloat16`. No check changes it."""
        return self._built()

    @functools.cached_property
    def _features(self):
        """A compiled function of x and named inputs: float32 features at inference."""
        return _compiled(self._encoder)

    @functools.cached_property
    def _at_first(self):
        return self._eager()

    def _eager(self):
        with quickly_compiled():
            return np.asarray(self._encoder(self._x(1), training=False), "float32")

    def _built(self):
        encoder = self._make()
        if not encoder.built:
            encoder.build(None)
        return encoder

    def _x(self, batch) -> np.ndarray:
        raise NotImplementedError


class _ImageEncoderChecks(_EncoderChecks):
    def sees_what_it_is_given(self):
        """With `ids` the features depend on those patches alone, for an image and for gathered patches."""
        encoder = self._encoder
        if not getattr(encoder, "grid", None):
            return  # it declares no grid, so it cannot skip patches, and FLIP rejects a mask
        x = self._x(4)
        tokens = encoder.grid[0] * encoder.grid[1]
        rng = np.random.default_rng(2)
        ids = np.sort([rng.permutation(tokens)[: tokens // 2] for _ in x], axis=1).astype("int32")
        whole, part = self._features(x), self._features(x, ids=ids)
        patches = np.asarray(gather(patchify(x, encoder.patch_size), ids))
        expected = "the same features of an image with ids and of its patches gathered, to 1e-5"
        expect_close(self._features(patches, ids=ids), part, expected)
        expect(np.abs(whole - part).max() > 0, "other features of half the patches", "the same")
        everything = np.tile(np.arange(tokens, dtype="int32"), (len(x), 1))
        expected = "all ids to mean the same as none, to 1e-5"
        expect_close(self._features(x, ids=everything), whole, expected)

    def _x(self, batch):
        height, width = sides(self._encoder.image_size)
        rng = np.random.default_rng(0)
        return rng.standard_normal((batch, height, width, 3)).astype("float32")

    def _model(self):
        encoder = self._make()
        return tiny(image=encoder, mask_ratio=0.5 if getattr(encoder, "grid", None) else 0.0)


class _TextEncoderChecks(_EncoderChecks):
    def sees_what_it_is_given(self):
        """With `keep` the features depend on those tokens alone, each at its position in the whole text."""
        x = self._x(4)
        everything = np.tile(np.arange(self._encoder.length, dtype="int32"), (len(x), 1))
        half = everything[:, : max(1, self._encoder.length // 2)]
        try:
            whole, same = self._features(x), self._features(x, keep=everything)
        except ConfigurationError:
            return  # it rejects `keep`: it cannot skip tokens
        expect_close(same, whole, "all tokens kept to mean the same as none dropped, to 1e-5")
        part = self._features(x, keep=half)
        expect(np.abs(whole - part).max() > 0, "other features of half the tokens", "the same")

    def takes_every_id(self):
        last = self._encoder.vocab - 1
        features = self._features(np.full((1, self._encoder.length), last, "int32"))
        expected = f"finite features of id {last}, the last of its vocab"
        expect(bool(np.isfinite(features).all()), expected, short(features))

    def _x(self, batch):
        rng = np.random.default_rng(0)
        shape = (batch, self._encoder.length)
        return rng.integers(1, self._encoder.vocab, shape).astype("int32")

    def _model(self):
        return tiny(text=self._make(), masker=None, mask_ratio=0.0)


def _values(encoder):
    """Returns the values of its variables: (trainable, others)."""
    both = encoder.trainable_variables, encoder.non_trainable_variables
    return tuple([v.value for v in variables] for variables in both)


def _compiled(encoder):
    """Returns a compiled function of x and named inputs: float32 features at inference."""

    @jax.jit
    def program(values, x, inputs):
        return encoder.stateless_call(*values, x, training=False, **inputs)[0]

    def features(x, **inputs):
        with quickly_compiled():
            return np.asarray(program(_values(encoder), x, inputs), "float32")

    return features
