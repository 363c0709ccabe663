"""What an earlier flipkit wrote still loads, goes on and is added to: tests/assets/ce40a54."""

import json
import pathlib
import tarfile

import keras
import numpy as np
import pytest

import flipkit
from flipkit import evaluation, recipe

OLD = pathlib.Path(__file__).parent / "assets" / "ce40a54"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def pixels():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")


def check(model):
    np.testing.assert_allclose(model.encode_images(pixels()), EXPECTED["image"], atol=1e-5)
    texts = model.encode_texts(["a red circle", "two squares"])
    np.testing.assert_allclose(texts, EXPECTED["text"], atol=1e-5)


def test_a_file_loads_and_embeds_as_before():
    check(flipkit.load_model(OLD / "finished.keras"))


def test_a_file_loads_by_kerass_own_function(fresh):
    """Here the classes of flipkit are registered once one of its models was named."""
    found = fresh(f"""
import flipkit
flipkit.FLIP
import keras
for name in ("finished", "probe"):
    print(type(keras.saving.load_model({str(OLD)!r} + f"/{{name}}.keras", compile=False)).__name__)
""")
    assert found.split() == ["FLIP", "Classifier"]


def test_a_classifier_loads_and_answers_as_before():
    logits = flipkit.load_model(OLD / "probe.keras").classify(pixels())
    np.testing.assert_allclose(logits[:, :8], EXPECTED["logits"], atol=1e-5)


def test_a_run_json_is_a_recipe(tmp_path):
    run = recipe.make(recipe.load(OLD / "run.json"), {"seed": "0"})
    assert isinstance(run.model.reconstruction, flipkit.MAEDecoder)
    assert isinstance(run.evaluators["zero_shot"], evaluation.ZeroShot)
    assert keras.tree.flatten(run.phases[1].mask_ratio) == [0.0]


@pytest.fixture
def stopped(tmp_path):
    with tarfile.open(OLD / "stopped.tar.xz") as archive:
        # Python 3.11.2 has no filters.
        archive.extractall(
            tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return tmp_path / "stopped"


def test_a_stopped_run_goes_on_to_the_same_end(stopped):
    run = recipe.make(recipe.load(stopped / "run.json"), {})
    check(run.start(stopped))
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["loss"] for row in rows], EXPECTED["losses"], rtol=1e-5)


def test_a_stopped_run_is_a_model(stopped):
    model = flipkit.load_pretrained(stopped)
    assert int(model.step) == 2


def test_a_study_is_read(tmp_path):
    from flipkit import study

    (tmp_path / "study.json").write_text((OLD / "study" / "study.json").read_text())
    (tmp_path / "results.jsonl").write_text((OLD / "study" / "results.jsonl").read_text())
    made = study.Study(tmp_path, "flip_shapes", {"scale": "tiny"}, "samples", 32)
    assert [r.variant.label for r in made.results()] == ["mask_ratio=0.0", "mask_ratio=0.5"]
    assert all(r.pairs == 32 and not r.diverged for r in made.results())
