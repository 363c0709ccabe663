"""Numbers and sizes that settings can't have: a sentence that names the argument, never a traceback."""

import math

import numpy as np
import pytest

import flipkit
from flipkit import checks, errors, recipe, settings
from flipkit.checks import Size

TOWER = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2}
TEXT = {"vocab": 32, "length": 6, "dim": 16, "depth": 1, "heads": 2}


def vit(**changes):
    return flipkit.ViT(**{**TOWER, **changes})


def text(**changes):
    return flipkit.TextTransformer(**{**TEXT, **changes})


def flip(**changes):
    return flipkit.FLIP(vit(), text(), **{"dim": 8, **changes})


def phase(**changes):
    return flipkit.Phase(**{"pairs": 16, "batch_size": 8, **changes})


REFUSED = [
    (vit, "dim", (0, -4, 1.5, "wide", True, None)),
    (vit, "depth", (0, 2.0)),
    (vit, "heads", (0,)),
    (vit, "mlp_dim", (0, "big")),
    (vit, "patch_size", (0, -8, (8, 8))),
    (vit, "image_size", (0, -16, 1.5, (16,), (16, 0), (16, 16, 3), "16", None)),
    (vit, "dropout", (-0.1, 1, math.nan, "some")),
    (vit, "drop_path", (-0.1, 1.0)),
    (vit, "norm_epsilon", (0, -1e-6, math.inf)),
    (text, "vocab", (0, "many")),
    (text, "length", (0, -1)),
    (text, "heads", (0,)),
    (flip, "dim", (0, 8.5)),
    (flip, "temperature", (0, -1.0, math.nan, math.inf, "warm", None)),
    (flip, "max_logit_scale", (-1, 0, 0.5, math.inf, "none")),
    (flip, "init_logit_bias", (math.nan, "ten")),
    (flip, "mask_ratio", (1, -0.5, math.nan)),
    (flip, "image_size", (0, (16,), "16")),
    (flipkit.MAEDecoder, "dim", (0, "x")),
    (flipkit.MAEDecoder, "depth", (0,)),
    (flipkit.MAEDecoder, "weight", (-1, math.inf)),
    (flipkit.AdamW, "learning_rate", (-1e-3, math.nan, "fast", None)),
    (flipkit.AdamW, "beta_1", (1, -0.1)),
    (flipkit.AdamW, "beta_2", (1.0, "x")),
    (flipkit.AdamW, "epsilon", (0, -1)),
    (flipkit.AdamW, "weight_decay", (-0.1, math.inf, "x")),
    (flipkit.LARS, "momentum", (1, -0.5)),
    (flipkit.LARS, "trust", (0,)),
    (flipkit.LARS, "weight_decay", (-1,)),
    (flipkit.losses.ContrastiveLoss, "label_smoothing", (1, -0.1, "x")),
    (flipkit.WarmupCosine, "peak", (-1e-3, math.nan, "x")),
    (flipkit.WarmupCosine, "floor", (-1, "x")),
    (flipkit.WarmupCosine, "warmup", (-5, "x")),
    (flipkit.Constant, "peak", (-1, math.inf)),
    (flipkit.Constant, "warmup", (-1, "x")),
    (phase, "pairs", (math.inf, math.nan, True)),
    (phase, "mask_ratio", (math.nan,)),
]


@pytest.mark.parametrize(
    ("make", "name", "values"),
    REFUSED,
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_number_that_cannot_be_is_refused_by_name(make, name, values):
    for value in values:
        needed = {flipkit.WarmupCosine: {"peak": 1}, flipkit.Constant: {"peak": 1}}.get(make, {})
        with pytest.raises(errors.ConfigurationError, match=rf"Received: .*{name}=") as told:
            make(**{**needed, name: value})
        assert repr(value) in str(told.value)


def test_rates_by_path_are_numbers_too():
    with pytest.raises(errors.ConfigurationError, match=r"rate_scale\['image'\]=-1"):
        flipkit.AdamW(rate_scale={"image": -1})


def test_numbers_of_numpy_are_numbers():
    checks.whole(dim=np.int64(4))
    checks.number(above=0, temperature=np.float32(0.1))
    checks.share(mask_ratio=np.float64(0.5))


def test_the_sentence_tells_the_bounds():
    for bounds, told in (
        ({}, "a finite number"),
        ({"above": 0}, "a number above 0"),
        ({"least": 1}, "a number of at least 1"),
        ({"above": 0, "below": 1}, "a number above 0 and below 1"),
    ):
        with pytest.raises(errors.ConfigurationError, match=rf"Expected {told}\. Received: x=nan"):
            checks.number(x=math.nan, **bounds)


# Sizes


def test_a_size_is_one_side_or_both():
    assert checks.sides(32) == (32, 32)
    assert checks.sides([32, 48]) == (32, 48)
    assert all(map(checks.is_size, (1, (32, 48), [32, 48])))
    assert not any(map(checks.is_size, (0, True, "32", 3.2, None, (1,), (1, 0), (1, 2, 3))))


def test_a_parameter_says_by_its_annotation_that_it_takes_a_size():
    for annotation in (Size, Size | None, int | tuple[int, int]):
        assert checks.takes_size(annotation)
    for annotation in (int, tuple[int, int], int | None, None, "Size"):
        assert not checks.takes_size(annotation)


def test_a_size_replaces_a_size_of_the_other_form():
    for like in (64, (64, 96), None):
        for value in (32, (32, 48), [32, 48], None):
            assert settings.as_like(value, [like], "x.image_size", Size) == value
        with pytest.raises(errors.ConfigurationError, match=r"one side or \(height, width\)"):
            settings.as_like((32, 48, 3), [like], "x.image_size", Size)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("model.image.image_size", lambda run: run.model.image),
        ("model.image_size", lambda run: run.model),
        ("phases.0.image_size", lambda run: run.phases[0]),
    ],
)
def test_every_size_of_a_run_takes_a_pair_from_the_command_line(path, part):
    function = recipe.load("flip_shapes")
    for text in ("(32, 48)", "[32, 48]"):
        run = recipe.make(function, {"scale": "tiny", path: text})
        assert part(run).image_size == (32, 48)
    assert part(run.with_override(path, 32)).image_size == 32  # and back
    with pytest.raises(errors.ConfigurationError, match=rf"pixels.*{path}=\(32, 48, 3\)"):
        recipe.make(function, {"scale": "tiny", path: "(32, 48, 3)"})


def test_a_recipes_own_size_takes_a_pair():
    run = recipe.make(recipe.load("flip_vitl14"), {"image_size": "(224, 336)"})
    assert run.model.image.grid == (16, 24)


@pytest.mark.parametrize("tokenizer", [flipkit.Bytes(), flipkit.ClipBPE.example()])
def test_a_text_has_room_for_what_begins_and_ends_it(tokenizer):
    for length in (1, 0, -1):
        with pytest.raises(
            errors.ConfigurationError, match=rf"at least 2.*Received: length={length}"
        ):
            tokenizer(["a cat"], length)
    assert tokenizer(["a cat"], 2).tolist() == [[tokenizer.start, tokenizer.end]]
