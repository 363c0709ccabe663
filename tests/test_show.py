"""flipkit.show: the picture of what maskers keep."""

import numpy as np
import pytest
from PIL import Image

import flipkit
from flipkit.commands import shell, show_masks
from flipkit.records import drawing


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype("uint8")
    Image.fromarray(noise).save(path)
    return path


def test_it_draws_what_the_maskers_keep(tmp_path, photo, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "masks.png"
    settings = [f"image={photo}", "image_size=32", "patch_size=8", "steps=2", f"out={out}"]
    assert shell.call("show", ["masks", "maskers=random", *settings]) == 0
    assert f"Picture: {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size[0] > 200


@pytest.mark.parametrize("grey", [0, 128, 204, 255])
def test_what_is_dropped_is_told_from_a_picture_of_any_brightness(tmp_path, grey):
    pytest.importorskip("matplotlib")
    pixels = np.full((16, 16, 3), grey, "uint8")
    masks = np.array([[True, False, False, True]])
    drawing.draw_masks([("", pixels, masks)], 8, tmp_path / "masks.png", title="")
    with Image.open(tmp_path / "masks.png") as picture:
        drawn = np.asarray(picture.convert("L")).astype(int)
    height, width = drawn.shape
    step = drawn[height // 4 : height - height // 8, width // 2 :]
    kept = np.abs(step - grey) < 3
    assert kept.mean() > 0.3  # two of the four patches, and the white around them
    dropped = step[
        ~kept
    ]  # hatched in two greys, of which at least one is another than the picture's
    assert ((np.abs(dropped - 204) < 3) | (grey == 204)).mean() > 0.2
    assert (np.abs(dropped - 128) < 40).mean() > 0.05


def test_the_picture_of_a_run_has_the_first_metric_of_each_evaluator():
    names = [
        *("attributes/accuracy", "retrieval/image_to_text/recall@1", "word_order/accuracy"),
        *("retrieval/image_to_text/recall@5", "retrieval/text_to_image/recall@1"),
        *("zero_shot/mrr", "zero_shot/seen/top1", "zero_shot/top1", "zero_shot/top5"),
    ]
    assert drawing.drawn(names) == [
        *("attributes/accuracy", "retrieval/image_to_text/recall@1", "word_order/accuracy"),
        *("retrieval/text_to_image/recall@1", "zero_shot/top1"),
    ]


def test_the_picture_of_a_run_says_what_it_leaves_out_and_what_is_no_number(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    kept = []
    monkeypatch.setattr(drawing, "_save", lambda figure, plt, path: kept.append(figure) or path)
    found = {"zero_shot/top1": 0.25, "zero_shot/top5": 0.5, "zero_shot/count": 9}
    rows = [
        {"seconds": 2.0 * i, "phase": i // 3, "loss": loss, "image_to_text_accuracy": 0.5, **found}
        for i, loss in enumerate([3.0, 2.0, float("nan"), 1.0], 1)
    ]
    drawing.draw_run(rows, tmp_path / "summary.png")
    [figure] = kept
    loss, _, evaluations = figure.axes
    assert "not finite: 1 of 4" in loss.get_title()
    assert figure.get_supxlabel() == "Not drawn: zero_shot/top5 (metrics.jsonl)"
    assert [text.get_text() for text in evaluations.texts] == ["phase 1", "zero_shot/top1"]
    for axis in figure.axes:
        assert (axis.get_xlim()[0], axis.get_ylim()[0]) == (0, 0)
    assert list(evaluations.lines[0].get_ydata()) == [25.0] * 4  # per cent
    pyplot.close(figure)


def test_what_it_draws_is_what_training_would_keep():
    pixels = np.zeros((32, 48, 3), "uint8")
    masks = show_masks.kept(flipkit.RandomMasker(), pixels, 8, 0.75, 3, seed=5)
    assert masks.shape == (3, 24)
    assert masks.sum(axis=1).tolist() == [6, 6, 6]
    seed = flipkit.Seed(5, 1).named("masker")
    ids = flipkit.RandomMasker()(np.zeros((1, 24, 192), "uint8"), keep=6, grid=(4, 6), seed=seed)
    np.testing.assert_array_equal(np.flatnonzero(masks[1]), np.asarray(ids)[0])


@pytest.mark.parametrize(
    ("own", "asked", "shown"), [(0.75, None, 0.75), (0.0, None, 0.5), (0.75, 0.25, 0.25)]
)
def test_a_model_shows_what_its_own_masker_keeps(
    tmp_path, photo, tiny, monkeypatch, own, asked, shown
):
    model = tiny(seed=3, mask_ratio=own)
    model.build()
    model.save(tmp_path / "model.keras")
    drawn = []
    monkeypatch.setattr(
        "flipkit.records.drawing.draw_masks",
        lambda rows, *more, **words: drawn.append((rows, more, words)),
    )
    settings = {"model": str(tmp_path), "image": str(photo), "steps": 3, "mask_ratio": asked}
    with pytest.raises(flipkit.ConfigurationError, match="Pictures need matplotlib"):
        show_masks.draw(**{**show_masks.SETTINGS, **settings})
    [([(label, pixels, masks)], (patch_size, _), words)] = drawn
    assert (label, patch_size) == ("RandomMasker", 4)
    kept = round(16 * (1 - shown))
    assert words["title"] == f"Training keeps {kept} of 16 patches (mask ratio {shown:g})"
    model.mask_ratio = shown
    np.testing.assert_array_equal(masks, model.draw_masks(pixels[None], range(3))[0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "Expected what to show: masks"),
        (["masks", "mask_ration=0.5"], "Did you mean 'mask_ratio'"),
        (["masks", "mask_ratio=1.5"], "Expected a share in [0, 1). Received: mask_ratio=1.5"),
        (
            ["masks", "mask_ratio=half"],
            "Expected a number, such as 0.5. Received: mask_ratio='half'",
        ),
        (["masks", "maskers=randon"], "Did you mean 'random'"),
        (["masks", "model=m.keras", "maskers=grid"], "leave out maskers, or model"),
        (["masks", "image_size=100"], "divisible by the patch size. Received: image_size=100"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_line(settings, told, capsys):
    assert shell.call("show", settings) == 2
    assert told in capsys.readouterr().err
