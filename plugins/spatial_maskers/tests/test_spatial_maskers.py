import flipkit_spatial_maskers as plugin
import numpy as np
import pytest
from flipkit_spatial_maskers import CropMasker, GaussianMasker, GridMasker

import flipkit
from flipkit import testing

MASKERS = [CropMasker, GaussianMasker, GridMasker]


def checks():
    for masker in MASKERS:
        for check in testing.check_masker(masker):
            marks = pytest.mark.slow if check.slow else ()
            yield pytest.param(check, id=f"{masker.__name__}: {check}", marks=marks)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_masker_must(check):
    check()


def kept(masker, grid, keep, batch=64, step=0):
    """Bool (batch, rows, columns): what is kept."""
    x = np.zeros((batch, grid[0] * grid[1], 3), "uint8")
    ids = np.asarray(masker(x, keep=keep, grid=grid, seed=flipkit.Seed(0, step)))
    mask = np.zeros((batch, grid[0] * grid[1]), bool)
    np.put_along_axis(mask, ids, True, axis=1)
    return mask.reshape(batch, *grid)


def test_grid_keeps_every_second_row_and_column_of_any_even_grid():
    for mask in kept(GridMasker(), (14, 14), 49):
        assert (mask.any(axis=1).sum(), mask.any(axis=0).sum()) == (7, 7)
        assert np.diff(np.flatnonzero(mask.any(axis=1))).tolist() == [2] * 6


def test_grid_keeps_a_chequerboard_at_half():
    row, column = np.indices((8, 8))
    for mask in kept(GridMasker(), (8, 8), 32):
        assert len({*((row + column) % 2)[mask]}) == 1


def test_grid_leaves_no_hole_that_random_places_would():
    mask = kept(GridMasker(), (14, 14), 98)
    windows = np.lib.stride_tricks.sliding_window_view(mask, (2, 2), axis=(1, 2))
    assert windows.any(axis=(-1, -2)).all()


@pytest.mark.parametrize("masker", [GridMasker(), CropMasker()])
def test_every_patch_is_seen(masker):
    assert kept(masker, (6, 6), 9, batch=256).any(axis=0).all()


@pytest.mark.parametrize(
    ("grid", "keep"), [((14, 14), 98), ((7, 5), 12), ((1, 9), 4), ((9, 2), 15)]
)
def test_crop_keeps_a_window(grid, keep):
    for mask in kept(CropMasker(), grid, keep):
        row, column = np.nonzero(mask)
        area = (np.ptp(row) + 1) * (np.ptp(column) + 1)
        assert keep <= area <= keep + max(grid)


def test_crops_lie_anywhere():
    corners = {tuple(np.argwhere(mask)[0]) for mask in kept(CropMasker(), (6, 6), 9, batch=512)}
    assert corners == {(row, column) for row in range(4) for column in range(4)}


def test_gaussian_keeps_by_radius_what_the_published_rule_does():
    """Against the rule as the authors' code has it, drawn by NumPy: the share kept at each radius."""
    grid, keep, batch = (14, 14), 98, 40_000
    places = np.linspace(-1, 1, 14)
    x, y = np.meshgrid(places, places)
    density = np.exp(-(x**2 + y**2) / 0.4) / (2 * np.pi * 0.2)
    draws = np.random.default_rng(0).random((batch, 196)) + density.ravel()
    wanted = np.zeros((batch, 196), bool)
    np.put_along_axis(wanted, np.argpartition(-draws, keep, axis=1)[:, :keep], True, axis=1)
    shares = [
        share.mean(axis=0).reshape(-1)
        for share in (kept(GaussianMasker(), grid, keep, batch), wanted)
    ]
    _, radius = np.unique(np.round(np.hypot(x, y).ravel(), 1), return_inverse=True)
    ours, theirs = (np.bincount(radius, share) / np.bincount(radius) for share in shares)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert ours[0] > 0.9 > 0.4 > ours[-1]  # the centre nearly always, the corners seldom


def test_a_sigma_of_0_is_refused():
    with pytest.raises(flipkit.ConfigurationError, match="Received: sigma=0"):
        GaussianMasker(0)


def test_the_names_are_offered():
    assert plugin.flipkit_maskers().keys() == {"crop", "gaussian", "grid"}
