"""The checks of a masker."""

import time
from typing import Any

import jax  # to compile the masker: Keras compiles in `fit` alone
import keras
import numpy as np

from flipkit.encoders import TextTransformer, ViT
from flipkit.maskers import Masker
from flipkit.random import Seed
from flipkit.testing.check import Check, expect, expect_equal, sample_of, short
from flipkit.testing.holding import TEXTS, PartChecks, quickly_compiled, tiny
from flipkit.tokenizers import WordPiece

GRIDS = ((4, 4), (7, 5), (1, 9))  # square, odd and not square, a single row
LENGTHS = ((1, 9), (1, 16))
NEEDS = {"pixels", "words", "tower"}


def check_masker(make, *, text=None, milliseconds=None, expected_failures=None) -> list[Check]:
    """Returns the checks of a masker of image patches or of text tokens.

    Args:
        make: the class, or a function without arguments that returns a masker.
        text: whether it masks tokens of text, not patches; None reads `needs`.
        milliseconds: the time that 64 rows of a ViT-B/16's patches, or of 77 tokens, may take, compiled.
            None leaves out this check, since other processes on the machine change the time.
        expected_failures: {name of a check: why it fails on purpose}; extends those of the class.
    """
    if text is None:
        text = "words" in getattr(sample_of(make), "needs", ())
    return _MaskerChecks(make, text, milliseconds).checks(expected_failures)


class _MaskerChecks(PartChecks):
    kind = Masker

    def __init__(self, make, text, milliseconds):
        super().__init__(make)
        self._text, self._milliseconds = text, milliseconds
        self._grids = LENGTHS if text else GRIDS
        self._made = {}  # {(grid, side): masker}: building one takes longer than calling it

    def keeps_as_many_as_it_is_told(self):
        for grid in self._grids:
            masker, tokens = self._masker(grid), grid[0] * grid[1]
            cases = [(5, keep) for keep in sorted({1, tokens // 2, tokens - 1, tokens})]
            cases.append((1, tokens // 2))
            for (batch, keep), ids in zip(cases, self._drawn(grid, cases, masker), strict=True):
                expected = f"ids int32 ({batch}, {keep}) of a grid {grid}"
                expect(ids.shape == (batch, keep), expected, f"shape {ids.shape}")
                expect(ids.dtype == "int32", expected, f"dtype {ids.dtype}")
                expected = f"ids from 0 to {tokens - 1}, ascending, none twice, of a grid {grid}"
                inside = bool(ids.min() >= 0 and ids.max() < tokens)
                expect(_rises(ids) and inside, expected, short(ids))

    def repeats_itself(self):
        first, again = (self._ids(step=3) for _ in range(2))
        expect_equal(again, first, "the same ids for the same seed and step")

    def draws_anew_at_every_step(self):
        ids = [self._ids(step=step) for step in range(4)]
        same = all(np.array_equal(ids[0], other) for other in ids[1:])
        expect(not same, "another mask at another step", "the same in 4 steps")

    def draws_rows_alone(self):
        """A micro-batch, or a device's share, has the same masks as in the whole batch."""
        program, x = _compiled(self._call(self._masker())), self._x()
        with quickly_compiled():
            whole, part = (np.asarray(program(rows, 0)) for rows in (x, x[:1]))
        expect_equal(part, whole[:1], "a row's ids not to depend on the other rows")

    def needs_what_it_looks_at(self):
        """The masks of a masker without `needs` may be drawn on the host, before the pixels exist."""
        needs = self._make().needs
        valid = isinstance(needs, tuple) and {*needs} <= NEEDS
        expect(valid, f"needs: a tuple of some of {sorted(NEEDS)}", repr(needs))
        if not needs:
            ids = [self._ids(content=content) for content in (0, 1)]
            expected = 'ids that do not depend on x where needs == (); write needs = ("pixels",)'
            expect_equal(ids[1], ids[0], expected)

    def compiles_to_the_same(self):
        eager, compiled = self._ids(step=2), _compiled(self._call(self._masker()))
        expect_equal(np.asarray(compiled(self._x(), 2)), eager, "the same ids compiled and not")

    def compiles_once(self):
        traces, call = [], self._call(self._masker())

        def counted(x, step):
            traces.append(step)
            return call(x, step)

        program = _compiled(counted)
        for step in range(3):
            program(self._x(), step)
        expect(len(traces) == 1, "one program for all steps", f"{len(traces)} in 3 steps")

    def works_in_bfloat16(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            grid = (1, 300) if self._text else (16, 16)
            masker = self._of(self._model(grid))
            (ids,) = self._drawn(grid, [(2, grid[0] * grid[1] // 2)], masker)
        finally:
            keras.config.set_dtype_policy(before)
        expected = "ids int32, ascending, none twice under mixed_bfloat16"
        expect(ids.dtype == "int32" and _rises(ids), expected, short(ids))

    def takes_its_time(self):
        grid, keep = ((1, 77), 32) if self._text else ((14, 14), 98)
        x, rounds = self._x(grid, 64, side=16), []
        program = _compiled(self._call(self._masker(grid, side=16), grid, keep))
        for step in range(6):
            start = time.perf_counter()
            jax.block_until_ready(program(x, step))
            rounds.append(1e3 * (time.perf_counter() - start))
        expected = f"at most {self._milliseconds:g} ms for {len(x)} rows of {grid}"
        expect(min(rounds[1:]) <= self._milliseconds, expected, f"{min(rounds[1:]):.1f} ms")

    def _included(self, name):
        return name != "takes_its_time" or self._milliseconds is not None

    def _x(self, grid=None, batch=5, content=0, side=2):
        """Patches of `side` x `side` pixels, or ids of tokens with three pads at the end."""
        tokens = np.prod(grid or self._grids[0])
        rng = np.random.default_rng(content)
        if self._text:
            ids = rng.integers(1, 50, (batch, tokens))
            return (ids * (np.arange(tokens) < tokens - 3)).astype("int32")
        return rng.integers(0, 256, (batch, tokens, 3 * side**2)).astype("uint8")

    def _model(self, grid=None, side=2):
        """Returns a built FLIP with the masker, for patches of this grid or for as many tokens."""
        rows, columns = grid or self._grids[0]
        if not self._text:
            size: Any = (side * rows, side * columns)
            image = ViT(size, side, dim=16, depth=1, heads=2)
            return tiny(image, masker=self._make())
        tokenizer: Any = WordPiece()
        tokenizer.train(TEXTS, 100)
        text = TextTransformer(tokenizer.vocab, columns, dim=16, depth=1, heads=2)
        masked = {"text_masker": self._make(), "text_mask_ratio": 0.5}
        return tiny(text=text, tokenizer=tokenizer, masker=None, mask_ratio=0.0, **masked)

    def _masker(self, grid=None, side=2):
        """Returns one masker for all checks. They call it in a StatelessScope, which keeps its state."""
        key = grid or self._grids[0], side
        if key not in self._made:
            self._made[key] = self._of(self._model(*key))
        return self._made[key]

    def _of(self, model):
        return model.text_masker if self._text else model.masker

    def _call(self, masker, grid=None, keep=None):
        grid = grid or self._grids[0]
        keep = keep or grid[0] * grid[1] // 2

        def call(x, step):
            return masker(x, keep=keep, grid=grid, seed=Seed(7, step).named("masker"))

        return call

    def _drawn(self, grid, cases, masker):
        """Returns the ids of each (batch, keep), all from one program: a program for each takes seconds."""
        calls = [self._call(masker, grid, keep) for _, keep in cases]
        x = [self._x(grid, batch) for batch, _ in cases]
        with quickly_compiled():
            program = _compiled(
                lambda x, step: [call(a, step) for call, a in zip(calls, x, strict=True)]
            )
            return [np.asarray(ids) for ids in program(x, 0)]

    def _ids(self, step=0, content=0):
        with quickly_compiled(), keras.StatelessScope():
            return np.asarray(self._call(self._masker())(self._x(content=content), step))


def _rises(ids):
    return bool((np.diff(ids, axis=1) > 0).all())


def _compiled(call):
    def pure(x, step):
        with keras.StatelessScope():  # leaves the masker's variables unchanged
            return call(x, step)

    return jax.jit(pure)
