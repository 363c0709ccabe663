import json

import jax
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipkit import maskers
from flipkit.errors import ConfigurationError, UnknownName
from flipkit.random import Seed


def masked(batch, tokens, keep, seed=0, step=0, rows=None):
    """The ids that RandomMasker keeps, eagerly."""
    x = np.zeros((batch, tokens, 3), "uint8")
    rows = None if rows is None else np.asarray(rows, "int32")
    masker = maskers.RandomMasker()
    return np.asarray(masker(x, keep=keep, grid=(1, tokens), seed=Seed(seed, step, rows)))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(2, 5, 3), (2, 5, 4), (1, 1, 1), (4, 9, 1)]), st.integers(0, 2**40))
def test_random_keeps_distinct_ascending_ids_in_range(shape, seed):
    batch, tokens, keep = shape
    ids = masked(batch, tokens, keep, seed)
    assert ids.dtype == np.int32
    assert ids.shape == (batch, keep)
    assert np.all(np.diff(ids, axis=1) > 0)
    assert ids.min() >= 0
    assert ids.max() < tokens


def test_keeping_all_keeps_all():
    np.testing.assert_array_equal(masked(3, 6, 6), np.tile(np.arange(6), (3, 1)))


def test_each_token_and_each_pair_of_tokens_stays_equally_often():
    ids = masked(20_000, 8, 3)
    kept = np.zeros((20_000, 8))
    np.put_along_axis(kept, ids, 1, axis=1)
    np.testing.assert_allclose(kept.mean(axis=0), 3 / 8, atol=0.015)
    together = (kept.T @ kept / len(kept))[np.triu_indices(8, 1)]
    np.testing.assert_allclose(together, 3 / 8 * 2 / 7, atol=0.012)


def test_rows_and_steps_draw_other_masks_and_a_step_the_same_again():
    first, again, later = masked(4, 64, 32), masked(4, 64, 32), masked(4, 64, 32, step=1)
    np.testing.assert_array_equal(first, again)
    rows = [*first, *later, *masked(4, 64, 32, seed=1)]
    assert len({row.tobytes() for row in rows}) == 12


def test_a_rows_mask_does_not_depend_on_its_batch():
    whole = masked(8, 16, 4)
    np.testing.assert_array_equal(masked(2, 16, 4, rows=[5, 2]), whole[[5, 2]])


def test_a_compiled_masker_draws_what_an_eager_one_does():
    masker = maskers.RandomMasker()

    @jax.jit
    def compiled(x, step):
        return masker(x, keep=5, grid=(4, 4), seed=Seed(3, step))

    x = np.zeros((6, 16, 3), "uint8")
    for step in (0, 1):
        np.testing.assert_array_equal(compiled(x, step), masked(6, 16, 5, seed=3, step=step))


def test_token_ids_are_masked_as_patches_are():
    masker = maskers.RandomMasker()
    found = masker(np.zeros((4, 16), "int32"), keep=5, grid=(1, 16), seed=Seed(2))
    np.testing.assert_array_equal(found, masked(4, 16, 5, seed=2))


DEVICES = """
import jax, numpy as np
from flipkit import maskers
from flipkit.random import Seed

assert jax.device_count() == 8, jax.devices()
mesh = jax.make_mesh((8,), ("batch",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
masker = maskers.RandomMasker()
draw = jax.jit(lambda x: masker(x, keep=4, grid=(4, 4), seed=Seed(3, 5)), out_shardings=split)
ids = draw(jax.device_put(np.zeros((16, 16, 3), "uint8"), split))
assert len(ids.sharding.device_set) == 8, ids.sharding
print(np.asarray(ids).tolist())
"""


def test_eight_devices_draw_what_one_does(fresh):
    found = json.loads(fresh(DEVICES, devices=8, JAX_PLATFORMS="cpu"))
    np.testing.assert_array_equal(found, masked(16, 16, 4, seed=3, step=5))


def test_a_masker_takes_part_in_a_functional_keras_model():
    x = keras.Input((16, 3), dtype="uint8")
    ids = maskers.RandomMasker()(x, keep=4, grid=(4, 4), seed=Seed(1))
    assert ids.shape == (None, 4)
    assert ids.dtype == "int32"
    model = keras.Model(x, ids)
    found = model(np.zeros((6, 16, 3), "uint8"))
    np.testing.assert_array_equal(found, masked(6, 16, 4, seed=1))


def test_keep_lowest_keeps_the_lowest_in_order():
    scores = np.array([[0.3, 0.1, 0.2, 0.9], [4, 3, 2, 1]], "float32")
    np.testing.assert_array_equal(maskers.keep_lowest(scores, 2), [[1, 2], [2, 3]])


def test_a_masker_without_call_says_what_to_write():
    with pytest.raises(NotImplementedError, match=r"Masker defines no call\(x, keep"):
        maskers.Masker()(np.zeros((1, 4), "int32"), keep=2, grid=(1, 4), seed=Seed())


def test_a_masker_is_named_made_given_or_none():
    assert type(maskers.get("random")) is maskers.RandomMasker
    assert maskers.get(None) is None
    masker = maskers.RandomMasker(name="mine")
    assert maskers.get(masker) is masker
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(masker)))
    assert maskers.get(config).get_config() == masker.get_config()
    with pytest.raises(UnknownName, match="'random'"):
        maskers.get("randm")
    with pytest.raises(ConfigurationError, match="maskers"):
        maskers.get(keras.layers.Dense(3))
    assert maskers.RandomMasker.needs == ()


# Text -----------------------------------------------------------------------------------------


def texts(words, length):
    """Token ids: so many words in each row, then padding."""
    return np.where(np.arange(length) < np.asarray(words)[:, None], 7, 0).astype("int32")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.integers(1, 6), st.integers(0, 99))
def test_prioritised_drops_no_word_while_padding_is_left(words, keep, seed):
    x = texts(words, 6)
    ids = np.asarray(maskers.PrioritisedMasker()(x, keep=keep, grid=(1, 6), seed=Seed(seed)))
    assert ids.shape == (4, keep)
    assert np.all(np.diff(ids, axis=1) > 0)
    kept = np.take_along_axis(x, ids, axis=1)
    np.testing.assert_array_equal((kept != 0).sum(1), np.minimum(words, keep))


def test_prioritised_finds_padding_wherever_it_is():
    x = np.array([[0, 5, 0, 6, 7, 0]] * 50, "int32")
    masker = maskers.PrioritisedMasker()
    found = np.asarray(masker(x, keep=3, grid=(1, 6), seed=Seed()))
    np.testing.assert_array_equal(found, np.tile([1, 3, 4], (50, 1)))
    four = np.asarray(masker(x, keep=4, grid=(1, 6), seed=Seed())).tolist()
    assert {tuple(row) for row in four} == {(0, 1, 3, 4), (1, 2, 3, 4), (1, 3, 4, 5)}


def test_prioritised_drops_words_evenly():
    x = texts([6] * 20_000, 8)
    ids = np.asarray(maskers.PrioritisedMasker()(x, keep=3, grid=(1, 8), seed=Seed()))
    kept = np.bincount(ids.ravel(), minlength=8) / 20_000
    np.testing.assert_allclose(kept, [1 / 2] * 6 + [0, 0], atol=0.015)


def test_prioritised_masks_no_pictures():
    masker = maskers.get("prioritised")
    assert masker.needs == ("words",)
    with pytest.raises(ConfigurationError, match=r"^The masker 'prioritised' .*\(2, 16, 3\)$"):
        masker(np.zeros((2, 16, 3), "uint8"), keep=2, grid=(4, 4), seed=Seed())


# Views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patches", "keep", "views"), [(16, 8, 2), (16, 4, 4), (9, 9, 1)])
def test_complementary_views_hold_every_patch_once(patches, keep, views):
    ids = np.asarray(maskers.complementary_views(5, patches, keep, Seed(3)))
    assert ids.shape == (5, views, keep)
    assert ids.dtype == np.int32
    assert np.all(np.diff(ids, axis=2) > 0)
    every = np.sort(ids.reshape(5, -1), axis=1)
    np.testing.assert_array_equal(every, np.tile(np.arange(patches), (5, 1)))
    assert len({row.tobytes() for row in ids}) == (1 if views == 1 else 5)


def test_views_that_cannot_share_the_patches_out_hold_some_twice():
    ids = np.asarray(maskers.complementary_views(5, 16, 6, Seed(3)))
    assert ids.shape == (5, 3, 6)
    assert np.all(np.diff(ids, axis=2) > 0)
    for row in ids:
        assert np.bincount(row.ravel(), minlength=16).min() == 1
        assert {*row[0]}.isdisjoint(row[1])


def test_one_view_is_what_the_random_masker_keeps():
    views = np.asarray(maskers.complementary_views(6, 16, 4, Seed(2, 1)))
    np.testing.assert_array_equal(views[:, 0], masked(6, 16, 4, seed=2, step=1))
