import inspect
import json
import pathlib

import numpy as np
import pytest
from flipkit_simclr.model import SimCLR

import flipkit
from flipkit import planning, recipe, testing
from flipkit.commands import shell


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The plugin, whether an entry point names it or not."""
    import flipkit_simclr

    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()
    flipkit.plugins.register(flipkit_simclr, name="flipkit-simclr")
    yield
    flipkit.plugins.reset()


def checks():
    for check in testing.check_model(SimCLR):
        yield pytest.param(check, id=str(check), marks=pytest.mark.slow if check.slow else ())


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_model_must(check):
    check()


def test_its_loss_and_accuracy_are_those_of_the_paper():
    """Equation 1, written plainly in NumPy, over both orders of each pair."""
    model = SimCLR.example()
    rng = np.random.default_rng(0)
    views = {name: rng.normal(size=(5, 8)).astype("float32") for name in ("image", "view")}
    z = np.concatenate([views["image"], views["view"]]).astype("float64")
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similar = np.exp(z @ z.T / 0.1)
    losses, right = [], []
    for i in range(10):
        j = (i + 5) % 10
        others = [similar[i, k] for k in range(10) if k != i]
        losses.append(-np.log(similar[i, j] / sum(others)))
        right.append(similar[i, j] == max(others))
    assert float(model.compute_loss(y_pred=views)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.mean(model.measure(views)["view_accuracy"]) == np.mean(right)


def made():
    """The recipe with two steps."""
    return recipe.make(recipe.load("simclr_shapes"), {"scale": "tiny"})


@pytest.fixture
def tiny():
    return made()


def test_a_run_resumes_to_the_same_end(tiny, tmp_path):
    class Killed(Exception):
        pass

    def kill(step):
        if step == 1:
            raise Killed

    run = tiny.with_override("checkpoint_every", 1)
    whole = run.start()
    with pytest.raises(Killed):
        run.start(tmp_path, pause=kill)
    # As in a notebook whose cell runs again: other objects, whose names Keras would number on.
    resumed = made().with_override("checkpoint_every", 1).start(tmp_path)
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 2
    assert 0 <= row["view_accuracy"] <= 1
    assert np.isfinite(row["gradient_norm"])


def test_a_phase_freezes_its_tower(tiny):
    run = tiny.with_override("phases.0.frozen", ["image"])
    before = SimCLR.from_config(run.model.get_config())
    before.seed = run.seed
    before.build()
    model = run.start()
    for a, b in zip(before.image.weights, model.image.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_it_is_planned_with_both_views(tiny):
    plan = planning.plan(tiny)
    forward = plan["masking"][0]["flops"]
    assert plan["towers"].keys() == {"image"}
    # Forward and backward of two views, with the head.
    assert 2 * 2.4 < plan["phases"][0]["training_flops_per_pair"]["image"] / forward < 2 * 3.3


def test_the_commands_take_it(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shell.call("run", ["simclr_shapes", "scale=tiny", "--workdir", "simclr"]) == 0
    assert shell.call("plan", ["simclr_shapes"]) == 0
    words = [
        "simclr_shapes",
        "scale=tiny",
        "model.temperature=0.1,0.5",
        "samples=16",
        "metric=neighbours/top1",
    ]
    assert shell.call("compare", [*words, "--workdir", "study"]) == 0
    printed = capsys.readouterr()
    words = ["simclr", "neighbours", "data=captioned_shapes", "data.split=test", "data.size=20"]
    assert shell.call("evaluate", words) == 0
    assert "temperature=0.5" in printed.out


def test_its_embeddings_survive_a_file(tiny, tmp_path):
    model = tiny.start()
    model.save(tmp_path / "model.keras")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")
    before = model.encode_images(pictures)
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, rtol=1e-5)
    again = flipkit.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.encode_images(pictures), before)


def test_the_whole_model_is_under_80_lines():
    assert len(pathlib.Path(inspect.getfile(SimCLR)).read_text().splitlines()) < 80
