"""Named characters: what the demo trains and is asked about."""

import pickle
import unicodedata

import numpy as np
import pytest

import flipkit
from flipkit.datasets import named_characters
from flipkit.errors import ConfigurationError

pytest.importorskip("matplotlib", reason="its fonts are what is drawn")


@pytest.fixture(scope="module")
def train():
    return flipkit.NamedCharacters(characters=40, image_size=32)


def test_a_sample_is_a_drawing_and_the_unicode_name_of_a_character(train):
    sample = train[3]
    assert sample["image"].shape == (32, 32, 3)
    assert sample["image"].dtype == np.uint8
    assert np.ptp(sample["image"].astype(int)) > 30  # something is drawn
    [name] = sample["texts"]
    assert unicodedata.lookup(name)
    assert train.texts(3) == [name]
    assert train.classnames()["names"][sample["label"]] == name


def test_samples_are_functions_of_their_index(train):
    again = pickle.loads(pickle.dumps(train))
    assert np.array_equal(train[7]["image"], again[7]["image"])
    assert not np.array_equal(train[7]["image"], train[7 + 40]["image"])  # another face
    assert train[7]["label"] == train[7 + 40]["label"]
    with pytest.raises(IndexError):
        train[len(train)]
    assert len(train) == 40 * 8 * 8


def test_the_test_family_is_never_trained_on_and_has_the_same_names(train):
    test = flipkit.NamedCharacters("test", characters=40, image_size=32)
    assert not set(named_characters.FACES["train"]) & set(named_characters.FACES["test"])
    assert test.classnames() == train.classnames()
    labels = [test[i]["label"] for i in range(len(test))]
    assert np.bincount(labels).tolist() == [2] * 40


def test_no_two_characters_have_one_drawing_or_one_name():
    names = flipkit.NamedCharacters().classnames()["names"]
    assert len(names) == len(set(names)) == 500
    every = flipkit.NamedCharacters(characters=None).classnames()["names"]
    assert len(every) > 1_000
    # Greek Alpha is drawn as Latin A is: one of them is left out.
    assert "greek capital letter alpha" not in every


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"characters": 0}, "characters=0"),
        ({"image_size": 6.5}, "image_size=6.5"),
        ({"size": True}, "size=True"),
    ],
)
def test_what_cannot_be_is_refused(arguments, told):
    with pytest.raises(ConfigurationError, match=told):
        flipkit.NamedCharacters(**arguments)


def test_more_characters_than_there_are_are_refused():
    with pytest.raises(ConfigurationError, match=r"The fonts have 1,\d\d\d such characters"):
        len(flipkit.NamedCharacters(characters=10_000))
