import numpy as np
import pytest

import flipkit
from flipkit import weights
from flipkit.commands import shell


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The plugin, whether an entry point names it or not."""
    import flipkit_numpy

    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    flipkit.plugins.reset()
    flipkit.plugins.register(flipkit_numpy, name="flipkit-numpy")
    yield
    flipkit.plugins.reset()


@pytest.fixture(scope="module")
def model():
    text = flipkit.TextTransformer(300, 12, dim=16, depth=1, heads=2)
    image = flipkit.ViT(32, 8, dim=16, depth=1, heads=2, dtype="mixed_bfloat16")
    made = flipkit.FLIP(image, text, dim=8, tokenizer="bytes", seed=1)
    made.build()
    made.step.assign(7)
    return made


@pytest.fixture
def folder(model, tmp_path):
    flipkit.save_as(model, "numpy", tmp_path / "shapes", verify=True)
    return tmp_path / "shapes"


def test_a_model_is_read_back_as_it_was(model, folder):
    again = flipkit.load_pretrained(folder)
    assert weights.detect(folder) == "numpy"
    assert int(again.step) == 7
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")
    np.testing.assert_array_equal(again.encode_images(pictures), model.encode_images(pictures))
    np.testing.assert_array_equal(again.encode_texts(["a"]), model.encode_texts(["a"]))


def test_each_variable_is_a_file_of_its_own(folder):
    kernel = np.load(folder / "variables" / "image" / "patch_embed" / "kernel.npy")
    assert kernel.shape == (192, 16)


def test_what_is_spoilt_is_refused_by_name(folder):
    np.save(folder / "variables" / "logit_scale.npy", np.zeros(3))
    with pytest.raises(flipkit.ConfigurationError, match=r"logit_scale\.npy. Received: \(3,\)"):
        flipkit.load_pretrained(folder)
    (folder / "variables" / "logit_scale.npy").unlink()
    with pytest.raises(flipkit.ConfigurationError, match=r"logit_scale\.npy. Received: no file"):
        flipkit.load_pretrained(folder)


def test_its_command_writes_vectors(model, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    words = ["shapes", "data=captioned_shapes", "data.size=5", "data.image_size=32", "out=v.npy"]
    assert shell.call("embed", words) == 0
    assert capsys.readouterr().out == "Written to v.npy: 5 vectors of 8 numbers.\n"
    vectors = np.load(folder.parent / "v.npy")
    data = flipkit.CaptionedShapes(size=5, image_size=32)
    expected = model.encode_images([data[i]["image"] for i in range(5)])
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Expected a model: flipkit embed MODEL"),
        (["shapes"], "Expected data='test-*.tar'"),
        (["shapes", "date=x"], "Unknown setting 'date'. Did you mean 'data'?"),
        (
            ["shape", "data=captioned_shapes"],
            "No such file or folder: shape. Did you mean 'shapes'?",
        ),
    ],
)
def test_its_command_answers_mistakes_in_a_line(folder, monkeypatch, capsys, words, told):
    monkeypatch.chdir(folder.parent)
    assert shell.call("embed", words) == 2
    assert capsys.readouterr().err.startswith(f"flipkit: {told}")


def test_the_help_of_flipkit_lists_its_command(capsys):
    assert "embed" in shell.overview()
    assert "(flipkit-numpy)" in shell.overview()


def test_its_evaluator_is_the_papers(model, folder, monkeypatch, capsys):
    """Wang and Isola's code, section 4.1, written plainly over all pairs."""
    data = flipkit.CaptionedShapes("test", size=6, image_size=32)
    texts = {"data": "captioned_shapes", "data.split": "test", "data.size": "6"}
    found = flipkit.evaluation.make("sphere", {**texts, "data.image_size": "32"})(model)
    x = model.encode_images([data[i]["image"] for i in range(6)]).astype("float64")
    y = model.encode_texts([data[i]["texts"][0] for i in range(6)])
    pairs = [np.exp(-2 * np.sum((a - b) ** 2)) for i, a in enumerate(x) for b in x[:i]]
    assert found["uniformity"] == pytest.approx(np.log(np.mean(pairs)), rel=1e-4)
    aligned = np.mean([np.sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    assert found["alignment"] == pytest.approx(aligned, rel=1e-4)
    monkeypatch.chdir(folder.parent)
    words = ["sphere", "data=captioned_shapes", "data.split=test", "data.size=6"]
    assert shell.call("evaluate", ["shapes", *words]) == 0
    assert "uniformity" in capsys.readouterr().out


def test_a_format_that_fails_takes_nothing_down(model, tmp_path, monkeypatch):
    import flipkit_numpy.folder

    def fail(path):
        raise OSError("the disk is on fire")

    monkeypatch.setattr(flipkit_numpy.folder, "recognises", fail)
    model.save(tmp_path / "whole.keras")
    assert int(flipkit.load_pretrained(tmp_path / "whole.keras").step) == 7
    (tmp_path / "strange" / "inside").mkdir(parents=True)
    with pytest.raises(flipkit.ConfigurationError, match="none of them"):
        flipkit.load_pretrained(tmp_path / "strange" / "inside")
    assert "the disk is on fire" in str(flipkit.plugins.problems()[0])
