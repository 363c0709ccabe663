"""What a component must do to fit, as lists of named checks: the tests of a plugin run them.

    import flipkit.testing
    import pytest
    from my_plugin import BlockMasker

    @pytest.mark.parametrize("check", flipkit.testing.check_masker(BlockMasker), ids=str)
    def test_block_masker(check):
        check()

Each `check_...` takes what makes the component: a class or a function without arguments, at a size that
is quick to run. What a component fails on purpose is named with its reason,
`expected_failures={"draws_rows_alone": "clusters the whole batch"}`: it is then skipped while it fails, and
fails once it passes. `run` gives the outcome of all of them without a test runner.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterable

import jax  # to compile what is checked: Keras has no word for it outside of `fit`
import keras
import numpy as np

from flipkit import registry
from flipkit.datasets import Dataset
from flipkit.encoders import TextTransformer, ViT
from flipkit.errors import BadSample, ConfigurationError, nearest
from flipkit.layers import gather, patchify
from flipkit.maskers import Masker, RandomMasker
from flipkit.model import FLIP, load_model
from flipkit.paths import canonical, matches
from flipkit.random import Seed
from flipkit.schedules import Schedule
from flipkit.tokenizers import Tokenizer

GRIDS = ((4, 4), (7, 5), (1, 9))  # square, odd and not square, a single row
TEXTS = ["a small red square", "", "Zwölf Boxkämpfer", "日本 🦊", "word " * 100]


class CheckFailed(AssertionError):
    """A component doesn't do what it must: what was expected, and what came."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a component must do."""

    name: str
    function: Callable[[], None]
    expected_failure: str | None = None  # why it fails on purpose

    def __str__(self):
        return self.name

    def __call__(self):
        """Raises CheckFailed, or unittest.SkipTest, which pytest knows, for an expected failure."""
        try:
            self.function()
        except CheckFailed as failure:
            if self.expected_failure is None:
                raise
            raise unittest.SkipTest(f"{self.expected_failure} ({failure})") from failure
        if self.expected_failure is not None:
            raise CheckFailed(f"{self.name} passes: take it out of expected_failures")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a check ended: "passed", "failed" or "expected failure"; and what it said."""

    check: str
    status: str
    message: str = ""


def run(checks: Iterable[Check]) -> list[Outcome]:
    """The outcome of every check, in their order."""
    outcomes = []
    for check in checks:
        try:
            check()
        except unittest.SkipTest as skipped:
            outcomes.append(Outcome(check.name, "expected failure", str(skipped)))
        except CheckFailed as failure:
            outcomes.append(Outcome(check.name, "failed", str(failure)))
        except Exception as problem:  # whatever a component raises is how its check ended
            said = f"it raised {type(problem).__name__}: {problem}".partition("\n")[0]
            outcomes.append(Outcome(check.name, "failed", said))
        else:
            outcomes.append(Outcome(check.name, "passed"))
    return outcomes


def check_masker(make, *, text=False, expected_failures=None) -> list[Check]:
    """The checks of a masker of image patches, or of text tokens."""
    return _MaskerChecks(make, text).checks(expected_failures)


def check_encoder(make, *, expected_failures=None) -> list[Check]:
    """The checks of an image encoder (it tells `image_size`) or of a text encoder (`length`, `vocab`)."""
    kind = _TextEncoderChecks if hasattr(make(), "length") else _ImageEncoderChecks
    return kind(make).checks(expected_failures)


def check_dataset(make, *, milliseconds=100.0, expected_failures=None) -> list[Check]:
    """The checks of a dataset; `milliseconds` is what a sample may cost on one core, on average."""
    return _DatasetChecks(make, milliseconds).checks(expected_failures)


def check_schedule(make, *, total=100_000, batch_size=100, expected_failures=None) -> list[Check]:
    """The checks of a schedule over `total` samples."""
    return _ScheduleChecks(make, total, batch_size).checks(expected_failures)


def check_tokenizer(make, *, length=16, expected_failures=None) -> list[Check]:
    """The checks of a tokenizer that is trained, or that `train` can train."""
    return _TokenizerChecks(make, length).checks(expected_failures)


CHECKS = {
    "maskers": check_masker,
    "encoders": check_encoder,
    "datasets": check_dataset,
    "schedules": check_schedule,
    "tokenizers": check_tokenizer,
}


class _Checks:
    """Methods without an underscore are checks; they run in the order they are written in."""

    kind: type = object

    def __init__(self, make):
        self._maker = make

    def _make(self):
        with registry.without_tensorflow():  # Keras serialises what a layer is made with
            return self._maker()

    def checks(self, expected_failures):
        """The list of them."""
        expected = dict(expected_failures or {})
        owners = [vars(owner) for owner in reversed(type(self).__mro__[:-1])]
        names = [
            n for owner in owners for n in owner if n[0] != "_" and n not in ("kind", "checks")
        ]
        for name in expected.keys() - set(names):
            raise ConfigurationError(f"There is no check {name!r}. {nearest(name, names)}")
        return [Check(name, getattr(self, name), expected.get(name)) for name in names]

    def is_made_without_arguments(self):
        made = self._make()
        _expect(isinstance(made, self.kind), f"a {self.kind.__name__}", type(made).__name__)

    def has_a_complete_config(self):
        """Run.json and `.keras` files hold nothing else of it."""
        made = self._make()
        before = _config(made)
        told = "an equal config after from_config(get_config()), through JSON"
        try:
            with registry.without_tensorflow():
                again = type(made).from_config(json.loads(before))
        except Exception as problem:
            raise CheckFailed(f"Expected {told}. Received: {problem}") from problem
        after = _config(again)
        _expect(after == before, told, f"{after} of {before}")

    def is_known_to_keras(self):
        """Files name the class; Keras must find it."""
        owner = type(self._make())
        found = keras.saving.get_registered_object(keras.saving.get_registered_name(owner))
        told = 'a class under @keras.saving.register_keras_serializable(package="...")'
        _expect(found is owner, told, f"{owner.__name__}, which keras.saving does not know")

    def starts_no_backend_when_imported(self):
        """Flipkit places devices after the plugins are loaded."""
        module = _module(self._make())
        said = _fresh(
            f"import importlib, sys; importlib.import_module({module!r})\n"
            "bridge = sys.modules.get('jax._src.xla_bridge')\n"
            "print(bool(bridge and bridge.backends_are_initialized()))"
        )
        told = (
            f"`import {module}` to start no JAX backend: arrays, keys, layers belong in functions"
        )
        _expect(said == "False", told, "a backend that runs")


class _MaskerChecks(_Checks):
    kind = Masker

    def __init__(self, make, text):
        super().__init__(make)
        self._text = text

    def keeps_as_many_as_it_is_told(self):
        for grid in self._grids():
            tokens = grid[0] * grid[1]
            for batch in (1, 5):
                for keep in {1, tokens // 2, tokens - 1, tokens}:
                    ids = self._ids(self._make(), grid, keep, batch)
                    told = f"ids int32 ({batch}, {keep}) of a grid {grid}"
                    _expect(ids.shape == (batch, keep), told, f"shape {ids.shape}")
                    _expect(ids.dtype == "int32", told, f"dtype {ids.dtype}")
                    told = f"ids from 0 to {tokens - 1}, ascending, none twice, of a grid {grid}"
                    rises = bool((np.diff(ids, axis=1) > 0).all())
                    inside = bool(ids.min() >= 0 and ids.max() < tokens)
                    _expect(rises and inside, told, _short(ids))

    def repeats_itself(self):
        first, again = (self._ids(self._make(), step=3) for _ in range(2))
        _expect_equal(again, first, "the same ids for the same seed and step")

    def draws_anew_at_every_step(self):
        ids = [self._ids(self._make(), step=step, batch=16) for step in range(4)]
        same = all(np.array_equal(ids[0], other) for other in ids[1:])
        _expect(not same, "another mask at another step", "the same in 4 steps")

    def draws_rows_alone(self):
        """So that a micro-batch, or a device's share, sees what the whole batch would."""
        whole = self._ids(self._make(), batch=8)
        part = self._ids(self._make(), batch=3)
        _expect_equal(part, whole[:3], "a row's ids not to depend on the other rows")

    def needs_what_it_looks_at(self):
        """One that needs nothing may be drawn on the host, before there are pixels."""
        masker = self._make()
        if masker.needs:
            return
        ids = [self._ids(self._make(), content=content) for content in (0, 1)]
        told = 'ids that do not depend on x where needs == (); write needs = ("pixels",)'
        _expect_equal(ids[1], ids[0], told)

    def compiles_to_the_same(self):
        eager = self._ids(self._make(), step=2)
        compiled = jax.jit(self._call(self._make()))(self._x(), 2)
        _expect_equal(np.asarray(compiled), eager, "the same ids compiled and not")

    def compiles_once(self):
        traces, call = [], self._call(self._make())

        def counted(x, step):
            traces.append(step)
            return call(x, step)

        program = jax.jit(counted)
        for step in range(3):
            program(self._x(), step)
        _expect(len(traces) == 1, "one program for all steps", f"{len(traces)} in 3 steps")

    def works_in_bfloat16(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            ids = self._ids(self._make(), (16, 16) if not self._text else (1, 300), batch=2)
        finally:
            keras.config.set_dtype_policy(before)
        told = "ids int32, ascending, none twice under mixed_bfloat16"
        _expect(ids.dtype == "int32" and bool((np.diff(ids, axis=1) > 0).all()), told, _short(ids))

    def trains(self):
        model = self._model()
        loss = _train(model)
        _expect(np.isfinite(loss), "a finite loss in training", loss)
        norms = [float(keras.ops.norm(v)) for v in model.trainable_variables]
        _expect(bool(np.isfinite(norms).all()), "finite weights after two steps", _short(norms))

    def survives_a_file(self):
        _survives_a_file(self._model(), _module(self._make()))

    def trains_on_eight_devices(self):
        module = _module(self._make())
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            self._model().save(path)
            losses = [
                float(
                    _fresh(_TRAIN.format(module=module, path=str(path), several=several), devices=n)
                )
                for several, n in ((False, 1), (True, 8))
            ]
        told = "the same loss on 8 devices as on one, to 1e-4"
        _expect(abs(losses[0] - losses[1]) < 1e-4, told, losses)

    def takes_its_time(self):
        """Compiled, at the shapes of a ViT-B/16, no longer than 50 times the random masker's draw."""
        grid, keep, batch = ((1, 77), 32, 64) if self._text else ((14, 14), 98, 64)
        x, times = self._x(grid, batch), []
        for masker in (RandomMasker(), self._make()):
            program = jax.jit(self._call(masker, grid, keep))
            jax.block_until_ready(program(x, 0))
            rounds = []
            for step in range(5):
                start = time.perf_counter()
                jax.block_until_ready(program(x, step))
                rounds.append(time.perf_counter() - start)
            times.append(min(rounds))
        allowed = max(50 * times[0], 0.05)
        told = f"at most {1e3 * allowed:.0f} ms for {batch} rows of {grid}"
        _expect(times[1] <= allowed, told, f"{1e3 * times[1]:.0f} ms")

    def _grids(self):
        return ((1, 9), (1, 16)) if self._text else GRIDS

    def _x(self, grid=None, batch=5, content=0):
        tokens = np.prod(grid or self._grids()[0])
        rng = np.random.default_rng(content)
        if self._text:
            ids = rng.integers(1, 50, (batch, tokens))
            return (ids * (np.arange(tokens) < tokens - 3)).astype("int32")  # pads at the end
        return rng.integers(0, 256, (batch, tokens, 12)).astype("uint8")

    def _call(self, masker, grid=None, keep=None):
        grid = grid or self._grids()[0]
        keep = keep or grid[0] * grid[1] // 2

        def call(x, step):
            return masker(x, keep=keep, grid=grid, seed=Seed(7, step).named("masker"))

        return call

    def _ids(self, masker, grid=None, keep=None, batch=5, step=0, content=0):
        x = self._x(grid, batch, content)
        return np.asarray(self._call(masker, grid, keep)(x, step))

    def _model(self):
        kind = "text_masker" if self._text else "masker"
        ratio = "text_mask_ratio" if self._text else "mask_ratio"
        settings = {"masker": None, "mask_ratio": 0.0, kind: self._make(), ratio: 0.5}
        return _tiny(**settings)


class _EncoderChecks(_Checks):
    kind = keras.layers.Layer

    def maps_a_batch_to_features(self):
        for batch in (1, 3):
            encoder = self._built()
            features = np.asarray(encoder(self._x(encoder, batch)), "float32")
            told = f"features (batch, dim) = ({batch}, {encoder.dim})"
            _expect(features.shape == (batch, encoder.dim), told, features.shape)
            _expect(bool(np.isfinite(features).all()), "finite features", _short(features))

    def repeats_itself_at_inference(self):
        encoder = self._built()
        x = self._x(encoder)
        first, again = (np.asarray(encoder(x, training=False)) for _ in range(2))
        _expect_equal(again, first, "the same features twice at inference")

    def tells_rows_apart_alone(self):
        encoder = self._built()
        x = self._x(encoder, 4)
        told = "a row's features not to depend on the other rows, to 1e-5"
        _expect_close(np.asarray(encoder(x[:2])), np.asarray(encoder(x))[:2], told)

    def compiles_to_the_same(self):
        encoder = self._built()
        x = self._x(encoder)
        compiled = np.asarray(jax.jit(lambda x: encoder(x))(x))
        _expect_close(compiled, np.asarray(encoder(x)), "compiled features equal to eager, to 1e-5")

    def works_in_bfloat16(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            encoder = self._built()
            features = np.asarray(encoder(self._x(encoder)), "float32")
        finally:
            keras.config.set_dtype_policy(before)
        _expect(bool(np.isfinite(features).all()), "finite features in bfloat16", _short(features))
        kept = {v.dtype for v in encoder.trainable_variables}
        _expect(kept <= {"float32"}, "weights kept in float32", kept)

    def learns_with_all_its_weights(self):
        encoder = self._built()
        x = self._x(encoder, 4)
        target = np.random.default_rng(1).standard_normal((4, encoder.dim)).astype("float32")

        def loss(values):
            outputs, _ = encoder.stateless_call(values, encoder.non_trainable_variables, x)
            return keras.ops.mean((keras.ops.cast(outputs, "float32") - target) ** 2)

        values = [v.value for v in encoder.trainable_variables]
        for variable, gradient in zip(
            encoder.trainable_variables, jax.grad(loss)(values), strict=True
        ):
            gradient, path = np.asarray(gradient), canonical(variable.path)
            _expect(bool(np.isfinite(gradient).all()), f"a finite gradient of {path}", "NaN or inf")
            # A key's bias moves all of a query's scores alike: softmax does not see it.
            silent = not gradient.any() and not path.endswith("key/bias")
            _expect(not silent, f"{path} to matter to the features", "a gradient of zeros")

    def has_a_layout_that_fits(self):
        encoder = self._built()
        paths = {canonical(v.path): v for v in encoder.trainable_variables}
        for pattern, axes in encoder.layout():
            found = [path for path in paths if matches(pattern, path)]
            _expect(found, f"layout() patterns that match variables: {pattern!r}", "none that does")
            for path in found:
                rank = len(paths[path].shape)
                _expect(len(axes) == rank, f"{rank} axes for {path}", axes)

    def survives_a_file(self):
        _survives_a_file(self._model(), _module(self._make()))

    def trains(self):
        loss = _train(self._model())
        _expect(np.isfinite(loss), "a finite loss in training", loss)

    def _built(self):
        encoder = self._make()
        if not encoder.built:
            encoder.build(None)
        return encoder

    def _x(self, encoder, batch=2) -> np.ndarray:
        raise NotImplementedError

    def _model(self) -> FLIP:
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
        _expect_close(np.asarray(encoder(patches, ids=ids)), part, told)
        _expect(np.abs(whole - part).max() > 0, "other features of half the patches", "the same")
        everything = np.tile(np.arange(tokens, dtype="int32"), (len(x), 1))
        told = "all ids to mean the same as none, to 1e-5"
        _expect_close(np.asarray(encoder(x, ids=everything)), whole, told)

    def _x(self, encoder, batch=2):
        size = encoder.image_size
        height, width = (size, size) if isinstance(size, int) else size
        rng = np.random.default_rng(0)
        return rng.standard_normal((batch, height, width, 3)).astype("float32")

    def _model(self):
        encoder = self._make()
        return _tiny(image=encoder, mask_ratio=0.5 if getattr(encoder, "grid", None) else 0.0)


class _TextEncoderChecks(_EncoderChecks):
    def takes_every_id(self):
        encoder = self._built()
        ids = np.full((1, encoder.length), encoder.vocab - 1, "int32")
        features = np.asarray(encoder(ids), "float32")
        told = f"finite features of id {encoder.vocab - 1}, the last of its vocab"
        _expect(bool(np.isfinite(features).all()), told, _short(features))

    def _x(self, encoder, batch=2):
        rng = np.random.default_rng(0)
        return rng.integers(1, encoder.vocab, (batch, encoder.length)).astype("int32")

    def _model(self):
        return _tiny(text=self._make())


class _DatasetChecks(_Checks):
    kind = Dataset

    def __init__(self, make, milliseconds):
        super().__init__(make)
        self._milliseconds = milliseconds

    def has_samples(self):
        data = self._make()
        _expect(isinstance(len(data), int) and len(data) > 0, "a length above 0", len(data))
        for i in self._some(data):
            sample = self._sample(data, i)
            missing = {"image", "texts", "id"} - sample.keys()
            _expect(not missing, "a sample with image, texts and id", f"none of {sorted(missing)}")
            image, texts = sample["image"], sample["texts"]
            told = "an image as bytes, or uint8 (height, width, 3)"
            if not isinstance(image, bytes):
                fits = getattr(image, "dtype", None) == "uint8" and image.shape[2:] == (3,)
                _expect(fits, told, getattr(image, "shape", type(image).__name__))
            words = isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)
            _expect(words, "texts: a list of at least one string", repr(texts)[:80])
            _expect(isinstance(sample["id"], str), "an id: a string", repr(sample["id"])[:80])

    def repeats_itself_in_any_order(self):
        data, other = self._make(), self._make()
        some = self._some(data)
        forward = [_frozen(self._sample(data, i)) for i in some]
        backward = [_frozen(self._sample(other, i)) for i in reversed(some)]
        _expect(forward == backward[::-1], "data[i] the same in any order", "other samples")

    def tells_texts_alone(self):
        data = self._make()
        for i in self._some(data):
            told, texts = self._sample(data, i)["texts"], data.texts(i)
            _expect(texts == told, f"texts({i}) as data[{i}] has them", repr(texts)[:80])

    def ends_where_it_says(self):
        data = self._make()
        for i in (-1, len(data), len(data) + 5):
            try:
                data[i]
            except IndexError:
                continue
            raise CheckFailed(
                f"Expected an IndexError from data[{i}] of {len(data)}. Received: none"
            )

    def pickles(self):
        """Feeds' workers get it so."""
        data = self._make()
        i = self._some(data)[0]
        first = _frozen(self._sample(data, i))  # opens what it opens lazily
        try:
            again = pickle.loads(pickle.dumps(data))  # noqa: S301
        except Exception as problem:
            raise CheckFailed(
                f"Expected data that pickles, opened too. Received: {problem}"
            ) from problem
        _expect(
            _frozen(self._sample(again, i)) == first, "the same sample after pickling", "another"
        )

    def takes_its_time(self):
        data = self._make()
        some = self._some(data, 16)
        self._sample(data, some[0])
        start = time.perf_counter()
        for i in some:
            self._sample(data, i)
        took = 1e3 * (time.perf_counter() - start) / len(some)
        _expect(
            took <= self._milliseconds, f"at most {self._milliseconds:g} ms a sample", f"{took:.1f}"
        )

    @staticmethod
    def _some(data, count=6):
        return sorted({int(i) for i in np.linspace(0, len(data) - 1, count)})

    @staticmethod
    def _sample(data, i):
        try:
            return data[i]
        except BadSample as bad:  # it may have some, and keeps their places
            return {"image": b"", "texts": ["bad"], "id": str(bad)}


class _ScheduleChecks(_Checks):
    kind = Schedule

    def __init__(self, make, total, batch_size):
        super().__init__(make)
        self._total, self._batch = total, batch_size

    def is_a_rate_everywhere(self):
        bound = self._make().bind(self._batch, self._total)
        last = self._total // self._batch
        rates = np.array([float(bound(step)) for step in np.linspace(0, last, 23).astype(int)])
        _expect(bool(np.isfinite(rates).all()), "a finite rate at every step", _short(rates))
        _expect(bool((rates >= 0).all()), "no rate below 0", rates.min())
        _expect(bool(rates.any()), "a rate above 0 somewhere", "0 throughout")

    def counts_samples(self):
        """The same place in the run has the same rate at any batch size."""
        places = [(self._total // 10) * i for i in range(11)]
        rates = [
            [float(self._make().bind(batch, self._total)(place // batch)) for place in places]
            for batch in (self._batch, self._batch // 2)
        ]
        told = "the same rates over samples at half the batch size, to 1e-5 of the highest"
        worst = np.abs(np.subtract(rates[0], rates[1])).max() / max(np.max(rates), 1e-30)
        _expect(worst <= 1e-5, told, f"a difference of {worst:.2g}")

    def begins_where_it_is_told(self):
        early = self._make().bind(self._batch, self._total)
        late = self._make().bind(self._batch, self._total, start=50)
        told = "the same rates 50 steps later with start=50"
        pairs = [(float(early(step)), float(late(step + 50))) for step in (0, 7, 100)]
        _expect(all(np.isclose(a, b, rtol=1e-6) for a, b in pairs), told, pairs)

    def compiles_to_the_same(self):
        bound = self._make().bind(self._batch, self._total)
        step = self._total // self._batch // 3
        compiled, eager = float(jax.jit(bound)(step)), float(bound(step))
        _expect(np.isclose(compiled, eager, rtol=1e-5), f"{eager} compiled too", compiled)


class _TokenizerChecks(_Checks):
    kind = Tokenizer

    def __init__(self, make, length):
        super().__init__(make)
        self._length = length

    def gives_rows_of_ids(self):
        tokenizer = self._trained()
        for texts in ([], TEXTS[:1], TEXTS):
            ids = tokenizer(texts, self._length)
            told = f"int32 ({len(texts)}, {self._length})"
            _expect(ids.shape == (len(texts), self._length), told, ids.shape)
            _expect(ids.dtype == "int32", told, ids.dtype)
            inside = not ids.size or (ids.min() >= 0 and ids.max() < tokenizer.vocab)
            _expect(inside, f"ids from 0 to {tokenizer.vocab - 1}, its vocab", _short(ids))

    def pads_at_the_end(self):
        tokenizer = self._trained()
        short = tokenizer(TEXTS[:1], 64)[0]
        filled = np.flatnonzero(short != tokenizer.pad)
        told = f"words first, then the pad {tokenizer.pad}"
        _expect(len(filled) and filled[-1] == len(filled) - 1 < 63, told, _short(short))

    def keeps_its_end_when_it_cuts(self):
        tokenizer = self._trained()
        if tokenizer.end is not None:
            row = tokenizer(TEXTS[-1:], self._length)[0]
            _expect(
                row[-1] == tokenizer.end, f"a cut text to end with {tokenizer.end}", _short(row)
            )

    def repeats_itself(self):
        ids = [self._trained()(TEXTS, self._length) for _ in range(2)]
        _expect_equal(ids[1], ids[0], "the same ids from a tokenizer made again")

    def tells_texts_apart(self):
        ids = self._trained()(["a red square", "a blue circle"], self._length)
        _expect(not np.array_equal(ids[0], ids[1]), "other ids for other texts", "the same")

    def refuses_a_single_string(self):
        try:
            self._trained()(TEXTS[0], self._length)
        except ConfigurationError:
            return
        raise CheckFailed(
            "Expected a ConfigurationError for a string in place of a list. Received: ids"
        )

    def pickles(self):
        tokenizer = self._trained()
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
        ids = [made(TEXTS, self._length) for made in (again, tokenizer)]
        _expect_equal(ids[0], ids[1], "the same ids after pickling")

    def saves_what_it_needs(self):
        tokenizer = self._trained()
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_assets(folder)
            again = type(tokenizer).from_config(tokenizer.get_config())
            again.load_assets(folder)
            _expect_equal(
                again(TEXTS, self._length),
                tokenizer(TEXTS, self._length),
                "the same ids from its assets",
            )

    def _trained(self):
        tokenizer = self._make()
        if not tokenizer.trained:
            tokenizer.train(TEXTS * 3 + ["a blue circle", "a red square"], 300)
        return tokenizer


# Small models, and processes of their own -------------------------------------------------------


def _tiny(image=None, text=None, **settings):
    """A FLIP that is built and holds what is checked."""
    model = FLIP(
        image or ViT(32, 8, dim=16, depth=1, heads=2),
        text or TextTransformer(50, 8, dim=16, depth=1, heads=2),
        dim=8,
        **{"mask_ratio": 0.5, "seed": 3, **settings},
    )
    model.build()
    return model


def _batch(model, size=8):
    rng = np.random.default_rng(0)
    edge = model.image.image_size
    height, width = (edge, edge) if isinstance(edge, int) else edge
    return {
        "image": rng.integers(0, 256, (size, height, width, 3)).astype("uint8"),
        "text": rng.integers(1, model.text.vocab, (size, model.text.length)).astype("int32"),
    }


def _train(model):
    """The loss of two steps of training."""
    model.compile("adamw")
    return float(
        model.fit(_batch(model), batch_size=4, shuffle=False, verbose=0).history["loss"][-1]
    )


def _survives_a_file(model, module):
    """A `.keras` file gives the same embeddings in a fresh process."""
    batch = _batch(model, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        model.save(path / "model.keras")
        np.savez(path / "batch.npz", allow_pickle=False, **batch)
        _fresh(_LOAD.format(module=module, folder=str(path)))
        after = np.load(path / "after.npz")
        for training in (False, True):
            for key, before in model(batch, training=training).items():
                told = f"the same {key} embeddings from a .keras file in a fresh process"
                _expect_close(after[f"{training}/{key}"], np.asarray(before), told, 1e-6)


_LOAD = """
import importlib
import flipkit.testing
importlib.import_module({module!r})
flipkit.testing._embed({folder!r})
print("done")
"""

_TRAIN = """
import importlib
import flipkit.testing
importlib.import_module({module!r})
print(flipkit.testing._train_file({path!r}, {several}))
"""


def _embed(folder):
    """In the fresh process: what the model in `folder` makes of the batch there."""
    folder = pathlib.Path(folder)
    model = load_model(folder / "model.keras")
    batch, after = dict(np.load(folder / "batch.npz")), {}
    for training in (False, True):
        for key, value in model(batch, training=training).items():
            after[f"{training}/{key}"] = np.asarray(value)
    np.savez(folder / "after.npz", allow_pickle=False, **after)


def _train_file(path, several):
    """In a fresh process: the loss of training the model in the file, over all devices or on one."""
    if several:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = load_model(path)
    model.compile("adamw")
    history = model.fit(_batch(model), batch_size=8, shuffle=False, verbose=0).history
    return float(history["loss"][-1])


def _module(component):
    module = type(component).__module__
    if module == "__main__":
        raise CheckFailed(
            "Expected a class in a module that another process can import. Received: one in __main__"
        )
    return module


def _fresh(code, devices=None):
    """The last line that `code` prints in a process of its own."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if devices:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
        variables["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise CheckFailed(f"Expected a fresh process to manage. Received: {said[0]}")
    return done.stdout.strip().splitlines()[-1]


# Expectations -----------------------------------------------------------------------------------


def _expect(held, expected, received):
    if not held:
        raise CheckFailed(f"Expected {expected}. Received: {received}")


def _expect_equal(got, wanted, told):
    _expect(np.array_equal(got, wanted), told, f"{_short(got)} and {_short(wanted)}")


def _expect_close(got, wanted, told, tolerance=1e-5):
    _expect(got.shape == wanted.shape, told, f"shapes {got.shape} and {wanted.shape}")
    got, wanted = (np.asarray(array, "float64") for array in (got, wanted))
    worst = float(np.max(np.abs(got - wanted), initial=0.0))
    allowed = tolerance * max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    _expect(worst <= allowed, told, f"a difference of {worst:.2g}")


def _short(array):
    return np.array2string(np.asarray(array).ravel()[:8], separator=", ")


def _config(component):
    """A component's config as JSON."""
    with registry.without_tensorflow():
        config = registry.serialize(component.get_config())
    try:
        return json.dumps(config, sort_keys=True)
    except TypeError as problem:
        raise CheckFailed(f"Expected a config that JSON can hold. Received: {problem}") from problem


def _frozen(sample):
    """A sample as something that can be compared."""
    return {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in sample.items()}
