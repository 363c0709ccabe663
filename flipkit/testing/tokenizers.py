"""The checks of a tokenizer."""

import pickle
import tempfile

import numpy as np

from flipkit.encoders import TextTransformer
from flipkit.errors import ConfigurationError
from flipkit.testing.check import Check, CheckFailed, expect, expect_equal, short
from flipkit.testing.holding import TEXTS, FileChecks, tiny
from flipkit.tokenizers import Tokenizer


def check_tokenizer(make, *, length=16, expected_failures=None) -> list[Check]:
    """Returns the checks of a tokenizer that is trained, or that `train` can train."""
    return _TokenizerChecks(make, length).checks(expected_failures)


class _TokenizerChecks(FileChecks):
    kind = Tokenizer

    def __init__(self, make, length):
        super().__init__(make)
        self._length = length

    def gives_rows_of_ids(self):
        tokenizer = self._trained()
        for texts in ([], TEXTS[:1], TEXTS):
            ids = tokenizer(texts, self._length)
            expected = f"int32 ({len(texts)}, {self._length})"
            expect(ids.shape == (len(texts), self._length), expected, ids.shape)
            expect(ids.dtype == "int32", expected, ids.dtype)
            inside = not ids.size or (ids.min() >= 0 and ids.max() < tokenizer.vocab)
            expect(inside, f"ids from 0 to {tokenizer.vocab - 1}, its vocab", short(ids))

    def pads_at_the_end(self):
        tokenizer = self._trained()
        row = tokenizer(TEXTS[:1], 64)[0]
        filled = np.flatnonzero(row != tokenizer.pad)
        expected = f"words first, then the pad {tokenizer.pad}"
        expect(len(filled) and filled[-1] == len(filled) - 1 < 63, expected, short(row))

    def keeps_its_end_when_it_cuts(self):
        tokenizer = self._trained()
        if tokenizer.end is not None:
            row = tokenizer(TEXTS[-1:], self._length)[0]
            expect(row[-1] == tokenizer.end, f"a cut text to end with {tokenizer.end}", short(row))

    def repeats_itself(self):
        ids = [self._trained()(TEXTS, self._length) for _ in range(2)]
        expect_equal(ids[1], ids[0], "the same ids from a tokenizer made again")

    def tells_texts_apart(self):
        ids = self._trained()(["a red square", "a blue circle"], self._length)
        expect(not np.array_equal(ids[0], ids[1]), "other ids for other texts", "the same")

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
        expect_equal(ids[0], ids[1], "the same ids after pickling")

    def saves_what_it_needs(self):
        tokenizer = self._trained()
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_assets(folder)
            again = type(tokenizer).from_config(tokenizer.get_config())
            again.load_assets(folder)
            expect_equal(
                again(TEXTS, self._length),
                tokenizer(TEXTS, self._length),
                "the same ids from its assets",
            )

    def _model(self):
        tokenizer = self._trained()
        text = TextTransformer(tokenizer.vocab, self._length, dim=16, depth=1, heads=2)
        return tiny(text=text, tokenizer=tokenizer, masker=None, mask_ratio=0.0)

    def _trained(self):
        tokenizer = self._make()
        if not tokenizer.trained:
            tokenizer.train(TEXTS * 3 + ["a blue circle", "a red square"], 300)
        return tokenizer
