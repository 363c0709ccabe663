import pathlib
import tomllib

import flipkit_block_masker
import keras
import numpy as np
import pytest
from flipkit_block_masker import BlockMasker

import flipkit

GRIDS = [(5, 3, 2), (7, 7, 3), (1, 9, 4), (3, 2, 5)]  # rows, columns, block


def kept(grid, keep, block, batch=16, seed=0):
    x = np.zeros((batch, grid[0] * grid[1], 3), "uint8")
    return np.asarray(BlockMasker(block)(x, keep=keep, grid=grid, seed=flipkit.Seed(seed)))


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()
    flipkit.plugins.register(flipkit_block_masker, name="flipkit-block-masker")
    yield
    flipkit.plugins.reset()


@pytest.mark.parametrize(("rows", "columns", "block"), GRIDS)
def test_masker_keeps_distinct_patches_in_ascending_order(rows, columns, block):
    for keep in (rows * columns * 2 // 5, rows * columns):
        ids = kept((rows, columns), keep, block)
        assert ids.shape == (16, keep)
        assert ids.dtype == "int32"
        assert ids.min() >= 0
        assert ids.max() < rows * columns
        assert (np.diff(ids, axis=1) > 0).all()


@pytest.mark.parametrize(("rows", "columns", "block"), GRIDS)
def test_at_most_one_block_is_cut(rows, columns, block):
    row, column = np.divmod(np.arange(rows * columns), columns)
    block_of = row // block * columns + column // block
    for ids in kept((rows, columns), rows * columns * 2 // 5, block):
        touched = np.isin(block_of, block_of[ids])
        cut = np.setdiff1d(np.flatnonzero(touched), ids)
        assert len(set(block_of[cut])) <= 1


def test_every_patch_is_kept_equally_often():
    ids = kept((4, 4), 8, 2, batch=2048)
    frequency = np.bincount(ids.ravel(), minlength=16) / 2048
    np.testing.assert_allclose(frequency, 0.5, atol=0.05)  # 4.5 standard deviations


def test_a_cut_block_loses_any_of_its_patches():
    ids = kept((2, 2), 2, 2, batch=2048)
    frequency = np.bincount(ids.ravel(), minlength=4) / 2048
    np.testing.assert_allclose(frequency, 0.5, atol=0.05)


def test_one_seed_draws_one_mask_and_another_seed_another():
    np.testing.assert_array_equal(kept((7, 7), 19, 3, seed=1), kept((7, 7), 19, 3, seed=1))
    assert (kept((7, 7), 19, 3, seed=1) != kept((7, 7), 19, 3, seed=2)).any()


def test_a_row_does_not_depend_on_the_rest_of_the_batch():
    np.testing.assert_array_equal(kept((7, 7), 19, 3, batch=16)[:4], kept((7, 7), 19, 3, batch=4))


def test_a_block_of_no_patches_is_refused():
    with pytest.raises(flipkit.ConfigurationError, match="Received: block=0"):
        BlockMasker(0)


def test_config_makes_an_equal_masker():
    config = keras.saving.serialize_keras_object(BlockMasker(3, name="mine"))
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, BlockMasker)
    assert again.get_config() == BlockMasker(3, name="mine").get_config()


def test_the_name_is_known_once_the_plugin_is_loaded(plugin):
    assert isinstance(flipkit.maskers.get("block"), BlockMasker)
    assert "block" in flipkit.plugins.names("maskers")
    assert flipkit.plugins.problems() == []


def test_pyproject_names_the_module_with_the_hook():
    text = pathlib.Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    module = tomllib.loads(text)["project"]["entry-points"]["flipkit"]["block_masker"]
    assert module == flipkit_block_masker.__name__
