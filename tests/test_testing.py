"""flipkit.testing: what flipkit ships passes, what is faulty fails the check that is about it."""

import functools
import pathlib
import sys
import unittest

import keras
import numpy as np
import pytest
from keras import ops

import flipkit
from flipkit import testing
from flipkit.errors import ConfigurationError
from flipkit.maskers import keep_lowest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # fresh processes import this module by name


def shipped():
    tower = functools.partial(flipkit.ViT, 32, 8, dim=16, depth=1, heads=2)
    words = functools.partial(flipkit.TextTransformer, 50, 8, dim=16, depth=1, heads=2)
    peak = 1e-3
    lists = {
        "random": testing.check_masker(flipkit.RandomMasker),
        "random of words": testing.check_masker(flipkit.RandomMasker, text=True),
        "vit": testing.check_encoder(tower),
        "text_transformer": testing.check_encoder(words),
        "captioned_shapes": testing.check_dataset(lambda: flipkit.CaptionedShapes(size=50)),
        "warmup_cosine": testing.check_schedule(lambda: flipkit.WarmupCosine(peak, warmup=5_000)),
        "constant": testing.check_schedule(lambda: flipkit.Constant(peak)),
        "bytes": testing.check_tokenizer(flipkit.Bytes),
        "wordpiece": testing.check_tokenizer(flipkit.WordPiece),
    }
    for name, checks in lists.items():
        for check in checks:
            marks = pytest.mark.slow if check.slow and name != "random" else ()
            yield pytest.param(check, id=f"{name}: {check}", marks=marks)


@pytest.mark.parametrize("check", list(shipped()))
def test_what_flipkit_ships_passes(check):
    check()


def test_the_check_of_bfloat16_may_come_first():
    tower = functools.partial(flipkit.ViT, 32, 8, dim=16, depth=1, heads=2)
    checks = {check.name: check for check in testing.check_encoder(tower)}
    checks["works_in_bfloat16"]()
    checks["tells_rows_apart_alone"]()  # to 1e-5, which bfloat16 can't keep


class Faulty(flipkit.Masker):
    """A sound masker whose faults are switched on one at a time."""

    def __init__(self, fault, **kwargs):
        super().__init__(**kwargs)
        self.fault = fault

    def call(self, x, keep, *, grid, seed):
        noise = seed.uniform((ops.shape(x)[0], x.shape[1]))
        match self.fault:
            case "unsorted":
                return ops.cast(ops.argsort(noise, axis=1)[:, :keep], "int32")
            case "of floats":
                return ops.cast(keep_lowest(noise, keep), "float32")
            case "one too many":
                return keep_lowest(noise, min(keep + 1, x.shape[1]))
            case "twice":
                return ops.zeros((ops.shape(x)[0], keep), "int32")
            case "frozen":
                noise = noise * 0 + flipkit.Seed(1).uniform((ops.shape(x)[0], x.shape[1]))
            case "careless":
                noise = ops.convert_to_tensor(np.random.default_rng().random(x.shape), "float32")
            case "of all rows":
                noise = noise + ops.mean(noise, axis=0, keepdims=True) * 7
            case "curious":
                noise = noise + ops.mean(ops.cast(x, "float32"), axis=2)
            case "of the step":
                noise = noise * (1 + int(seed.key) % 3)
        return keep_lowest(noise, keep)

    def get_config(self):
        return {**super().get_config(), "fault": self.fault}


FAULTS = {
    "unsorted": "keeps_as_many_as_it_is_told",
    "of floats": "keeps_as_many_as_it_is_told",
    "one too many": "keeps_as_many_as_it_is_told",
    "twice": "keeps_as_many_as_it_is_told",
    "frozen": "draws_anew_at_every_step",
    "careless": "repeats_itself",
    "of all rows": "draws_rows_alone",
    "curious": "needs_what_it_looks_at",
    "of the step": "compiles_once",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_masker_fails_the_check_about_its_fault(fault):
    checks = {c.name: c for c in testing.check_masker(functools.partial(Faulty, fault))}
    (outcome,) = testing.run([checks[FAULTS[fault]]])
    assert outcome.status == "failed"
    assert outcome.message
    sound = {"is_made_without_arguments", "has_a_complete_config"}
    assert {o.status for o in testing.run(checks[name] for name in sound)} == {"passed"}


def test_a_class_that_keras_does_not_know_fails():
    checks = {c.name: c for c in testing.check_masker(functools.partial(Faulty, None))}
    with pytest.raises(testing.CheckFailed, match="register_keras_serializable"):
        checks["is_known_to_keras"]()


class Forgetful(flipkit.Masker):
    def __init__(self, block=2, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def get_config(self):
        return {**super().get_config(), "blok": self.block}


def test_a_config_that_its_class_refuses_fails():
    checks = {c.name: c for c in testing.check_masker(Forgetful)}
    with pytest.raises(testing.CheckFailed, match="blok"):
        checks["has_a_complete_config"]()


@keras.saving.register_keras_serializable(package="test_testing")
class Deaf(keras.layers.Layer):
    """An image encoder that takes ids and does not listen to them."""

    dim, image_size, patch_size, grid = 8, 32, 8, (4, 4)

    def build(self, shape=None):
        self.kernel = self.add_weight(shape=(3, 8), name="kernel")
        self.unused = self.add_weight(shape=(3, 8), name="unused")

    def call(self, x, ids=None, training=False):
        colour = ops.mean(ops.reshape(x, (x.shape[0], -1, 3)), axis=1)
        return ops.matmul(colour, self.kernel)

    def layout(self):
        return (("kernel", (None, "model")), ("kernels", (None, "model")))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("sees_what_it_is_given", "its patches gathered"),
        ("learns_with_all_its_weights", "unused to matter"),
        ("has_a_layout_that_fits", "'kernels'"),
    ],
)
def test_a_faulty_encoder_fails_the_check_about_its_fault(check, told):
    checks = {c.name: c for c in testing.check_encoder(Deaf)}
    with pytest.raises(testing.CheckFailed, match=told):
        checks[check]()


def test_an_expected_failure_is_skipped_with_its_reason_and_fails_once_it_passes():
    make = functools.partial(Faulty, "frozen")
    reason = {"draws_anew_at_every_step": "always the same on purpose"}
    checks = {c.name: c for c in testing.check_masker(make, expected_failures=reason)}
    with pytest.raises(unittest.SkipTest, match="on purpose"):
        checks["draws_anew_at_every_step"]()
    mended = testing.check_masker(flipkit.RandomMasker, expected_failures=reason)
    (outcome,) = testing.run(c for c in mended if c.name in reason)
    assert outcome.status == "failed"
    assert "take it out of expected_failures" in outcome.message


def test_an_unknown_expected_failure_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'draws_rows_alone'"):
        testing.check_masker(flipkit.RandomMasker, expected_failures={"draws_row_alone": ""})


@pytest.mark.parametrize(
    "check",
    [
        functools.partial(testing.check_masker, flipkit.RandomMasker),
        functools.partial(testing.check_masker, flipkit.RandomMasker, text=True),
        functools.partial(testing.check_dataset, lambda: flipkit.CaptionedShapes(size=50)),
    ],
    ids=["masker", "masker of words", "dataset"],
)
def test_a_clock_decides_only_where_a_time_is_given(check):
    assert "takes_its_time" not in {c.name for c in check()}
    status = {}
    for milliseconds in (0, 1e6):
        timed = [c for c in check(milliseconds=milliseconds) if c.name == "takes_its_time"]
        (outcome,) = testing.run(timed)
        status[milliseconds] = outcome.status
    assert status == {0: "failed", 1e6: "passed"}
