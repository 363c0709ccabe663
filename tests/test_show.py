"""flipkit.show: the picture of what maskers keep."""

import numpy as np
import pytest
from PIL import Image

import flipkit
from flipkit import show


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
    assert show.main(["show", "masks", "maskers=random", *settings]) == 0
    assert f"Picture: {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size[0] > 200


def test_what_it_draws_is_what_training_would_keep():
    pixels = np.zeros((32, 48, 3), "uint8")
    masks = show.kept(flipkit.RandomMasker(), pixels, 8, 0.75, 3, seed=5)
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
        "flipkit.report.draw_masks", lambda rows, *more, **words: drawn.append((rows, more, words))
    )
    settings = {"model": str(tmp_path), "image": str(photo), "steps": 3, "mask_ratio": asked}
    with pytest.raises(flipkit.ConfigurationError, match="Pictures need matplotlib"):
        show.draw(**{**show.SETTINGS, **settings})
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
    assert show.main(["show", *settings]) == 2
    assert told in capsys.readouterr().err
