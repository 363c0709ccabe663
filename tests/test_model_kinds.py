"""One kind of MODEL for every command: each kind is evaluated, converted, shown and begun from."""

import json
import shutil
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest

import flipkit
from flipkit import layers, weights
from flipkit.commands import evaluate_model, printing, shell
from flipkit.errors import ConfigurationError, FlipkitError
from flipkit.records import findings
from flipkit.weights import initial, keras_hub, t5x, tensors

DATA = ["data=captioned_shapes", "data.size=6", "data.image_size=32"]
MERGES = "#version: 0.2\nr e\nre d</w>\n"
TOWER: Any = {"dim": 16, "depth": 1, "heads": 2}
CLIP_IMAGE: Any = {
    "class_position": True,
    "pre_norm": True,
    "pool": "class",
    "patch_bias": False,
    "final_norm": "after_pool",
}


def clip(tokenizer=None):
    """CLIP's towers, with byte pairs of two merges."""
    image = flipkit.ViT(16, 8, **TOWER, **CLIP_IMAGE, positions="learned", norm_epsilon=1e-5)
    text = flipkit.TextTransformer(
        516, 8, **TOWER, causal=True, pool="eos", eos=None, norm_epsilon=1e-5
    )
    tokenizer = tokenizer or flipkit.ClipBPE.example()
    model = flipkit.FLIP(image, text, dim=8, tokenizer=tokenizer, seed=1)
    model.build()
    return model


def siglip():
    """SigLIP's towers, with bytes."""
    image = flipkit.ViT(
        16, 8, **TOWER, positions="learned", class_token=False, pool="map", norm_epsilon=1e-6
    )
    text = flipkit.TextTransformer(259, 8, **TOWER, pool="last", padding=1, norm_epsilon=1e-6)
    heads: Any = {"image_head": None, "text_head": "affine", "max_logit_scale": None}
    model = flipkit.FLIP(
        image, text, dim=16, init_logit_bias=-10.0, **heads, tokenizer="bytes", seed=1
    )
    model.build()
    return model


def write_keras_hub(model, folder):
    """A preset of KerasHub's CLIP, as tests/test_weights_keras_hub.py has KerasHub itself write it."""
    folder.mkdir()
    stack = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "intermediate_dim": 64}
    stack["intermediate_activation"] = "gelu_approximate"
    vision = {**stack, "patch_size": 8, "image_shape": [16, 16, 3]}
    text = {**stack, "embedding_dim": 16, "vocabulary_size": 516, "max_sequence_length": 8}
    towers = {"vision_encoder": {"config": vision}, "text_encoder": {"config": text}}
    config = {"class_name": "CLIPBackbone", "config": {**towers, "projection_dim": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    _, names, alone = keras_hub._FAMILIES["CLIPBackbone"]
    entries = [keras_hub._entry(model, path, names, alone) for path in tensors.weights(model)]
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for name, array in tensors.dump(model, entries).items():
            file[name] = array
    (folder / "assets" / "tokenizer").mkdir(parents=True)
    (folder / "assets" / "tokenizer" / "merges.txt").write_text(MERGES)


def write_t5x(folder):
    """A checkpoint of an official FLIP of one of the paper's widths, its arrays within the index."""
    tower: Any = {"dim": 512, "depth": 1, "heads": 8, "mlp_dim": 16}
    model = flipkit.FLIP(
        flipkit.ViT(16, 8, **tower), flipkit.TextTransformer(64, 8, **tower), dim=8, seed=1
    )
    model.build()
    arrays = tensors.dump(model, t5x.entries(model))
    fixed = layers.sincos_positions((2, 2), 512)
    arrays[t5x._POSITIONS] = np.pad(fixed, ((1, 0), (0, 0)))[None].astype("float32")
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parts, last = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
        node[last] = msgpack.ExtType(1, packed)
    folder.mkdir()
    (folder / "checkpoint").write_bytes(msgpack.packb({"optimizer": {"target": tree}}))
    (folder.parent / "vocab.txt").write_text("[PAD]\n[UNK]\na\nred\nblue\n")


def write_run(model, folder, finished):
    """A run's folder, as it is in mid-run or at its end."""
    run = flipkit.Run(
        model,
        data=flipkit.CaptionedShapes(size=8, image_size=32),
        feed=flipkit.Feed(crop=None, flip=False, threads=1),
        phases=[flipkit.Phase(8, 8, flipkit.Constant(1e-3))],
        checkpoint_every=1,
    )
    run.start(folder, say=lambda line: None)
    if not finished:
        (folder / "model.keras").unlink()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a MODEL of every kind under its name."""
    folder, made, pair = tmp_path_factory.mktemp("kinds"), clip(), siglip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flipkit.records.drawing.pyplot", lambda: None)
        write_run(clip("bytes"), folder / "finished run", finished=True)
    shutil.copytree(folder / "finished run", folder / "run")
    (folder / "run" / "model.keras").unlink()
    flipkit.save_as(made, "keras", folder / "clip.keras")
    for format in ("open_clip", "huggingface"):
        flipkit.save_as(made, format, folder / format)
        (folder / format / "merges.txt").write_text(MERGES)
    flipkit.save_as(made, "preset", folder / "preset")
    flipkit.save_as(pair, "huggingface", folder / "siglip")
    flipkit.save_as(pair, "big_vision", folder / "big_vision.npz")
    write_keras_hub(made, folder / "keras_hub")
    (folder / "official").mkdir()
    write_t5x(folder / "official" / "checkpoint_5")
    return folder


# Where the tokenizer does not lie beside the weights, what brings it
KINDS = {
    "finished run": None,
    "run": None,
    "clip.keras": None,
    "open_clip": None,
    "huggingface": None,
    "preset": None,
    "keras_hub": None,
    "siglip": "bytes",
    "big_vision.npz": "bytes",
    "official/checkpoint_5": "official/vocab.txt",
}


@pytest.fixture
def command(models, monkeypatch, capsys):
    """Runs a command in this process among the models: (exit code, printed, complained)."""
    monkeypatch.chdir(models)

    def call(program, *arguments):
        return shell.call(program, [*map(str, arguments)]), *capsys.readouterr()

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_evaluated_with_its_tokenizer(kind, command, tmp_path):
    given = [] if KINDS[kind] is None else [f"model.tokenizer={KINDS[kind]}"]
    out = tmp_path / "found.json"
    code, printed, complained = command(
        "evaluate", kind, "retrieval", *DATA, *given, f"--results={out}"
    )
    assert (code, complained) == (0, "")
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    [entry] = findings.read(out)
    assert entry["model"] == kind
    assert entry["found"]["images"] == 6
    if given:
        code, _, complained = command("evaluate", kind, "retrieval", *DATA, f"--results={out}")
        assert code == 2
        assert "Add model.tokenizer=FILE" in complained


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_converted_and_shown_and_begun_from(kind, command, models, tmp_path):
    given = [] if KINDS[kind] is None else [f"--tokenizer={KINDS[kind]}"]
    target = tmp_path / "out.keras"
    code, _, complained = command("convert", kind, target, *given)
    assert (code, complained) == (0, "")
    model, source = flipkit.load_pretrained(target), flipkit.load_pretrained(models / kind)
    assert model.tokenizer.trained
    initial.take_weights(model, source, kind)  # as a run's init=
    for path, value in tensors.weights(source).items():
        np.testing.assert_array_equal(tensors.weights(model)[path], value, err_msg=path)
    code, _, complained = command("show", "masks", f"model={kind}", f"out={tmp_path}/masks.png")
    assert (code, complained) == (0, "")
    assert (tmp_path / "masks.png").stat().st_size


def test_what_is_no_model_is_answered_with_the_nearest_thing(models, command, monkeypatch):
    (models / "notes.txt").write_text("no weights")
    for folder in ("somewhere", "several"):
        (models / folder).mkdir(exist_ok=True)
    shutil.copy(models / "clip.keras", models / "several" / "one.keras")
    for where, told in (
        ("opan_clip", "Did you mean 'open_clip'"),
        ("openai/clip-vit-base-patch32", "hf download openai/clip-vit-base-patch32"),
        ("hf-hub:laion/CLIP", "hf download laion/CLIP"),
        ("local-dir:open_clip", "Give the folder alone: open_clip"),
        ("several", "Models in it: several/one.keras"),
        ("open_clip/open_clip_config.json", "is a part of one. Did you mean"),
        ("finished run/checkpoints", "is a part of one. Did you mean"),
        ("somewhere", "a folder of open_clip, Hugging Face, KerasHub"),
    ):
        for program, rest in (
            ("evaluate", ("retrieval", *DATA)),
            ("convert", ("out.keras",)),
        ):
            code, _, complained = command(program, where, *rest)
            assert code == 2
            assert told in complained
        with pytest.raises(FlipkitError) as problem:
            weights.load_pretrained(where)  # as init= does
        assert told in str(problem.value)
        code, _, complained = command("show", "masks", f"model={where}")
        assert code == 2
        assert told in complained


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere.txt", "No such file or folder: model.tokenizer=nowhere.txt"),
        ("byte", "Did you mean 'bytes'"),
        ("somewhere", "Expected a tokenizer's file in model.tokenizer=somewhere"),
        ("open_clip", "Expected a tokenizer of at most 259 ids"),
        ("clip_bpe", "with no ids"),
    ],
)
def test_tokenizer_that_can_not_be_given_is_refused(given, told, models, command):
    (models / "somewhere").mkdir(exist_ok=True)
    code, _, complained = command(
        "evaluate", "siglip", "retrieval", *DATA, f"model.tokenizer={given}"
    )
    assert code == 2
    assert told in complained


def test_a_pickle_is_answered_with_two_lines_that_name_its_file(tmp_path):
    (tmp_path / "epoch_5.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ConfigurationError) as problem:
        flipkit.load_pretrained(tmp_path)
    *_, first, second = str(problem.value).splitlines()
    assert first.startswith("import torch, safetensors.torch; found = torch.load(")
    assert "weights_only=True" in first
    assert str(tmp_path / "open_clip_model.safetensors") in second
    (tmp_path / "config.json").write_text("{}")
    assert str(tmp_path / "model.safetensors") in tensors.remedy(tmp_path / "pytorch_model.bin")


# What was found ---------------------------------------------------------------------------------


def entry(**changes):
    return {
        "model": "m",
        "step": 1,
        "evaluator": "e",
        "settings": {"data": (1, 2)},
        "found": {},
    } | (changes)


def test_findings_are_kept_by_model_step_evaluator_data_and_settings(tmp_path):
    path = tmp_path / "new" / "evaluations.json"
    findings.keep(path, entry(found={"top1": 0.1}))
    others = [{"model": "n"}, {"step": 2}, {"evaluator": "f"}, {"settings": {"data": (1, 3)}}]
    for other in others:
        findings.keep(path, entry(**other))
    kept = findings.keep(path, entry(found={"top1": 0.2}))  # which takes the first one's place
    assert len(kept) == 1 + len(others)
    assert kept[-1]["found"] == {"top1": 0.2}
    assert kept == findings.read(path)
    assert [p.name for p in path.parent.iterdir()] == ["evaluations.json"]


def test_findings_are_kept_in_a_run_or_here_but_in_no_folder_of_others(models, monkeypatch):
    monkeypatch.chdir(models)
    assert findings.place("finished run") == findings.place("finished run/model.keras")
    assert str(findings.place("run")) == "run/evaluations.json"
    for kind in ("open_clip", "clip.keras", "big_vision.npz"):
        assert str(findings.place(kind)) == "evaluations.json"


def test_a_file_of_something_else_is_not_overwritten(models, command, tmp_path):
    out = tmp_path / "found.json"
    for text in ("{}", "[1]", '{"results": [{"model": "m"}]}', "no json"):
        out.write_text(text)
        code, _, complained = command(
            "evaluate", "clip.keras", "retrieval", *DATA, f"--results={out}"
        )
        assert code == 2
        assert "holds something else" in complained
        assert out.read_text() == text


def test_tables_of_what_was_found_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    groups = ["", *(f"group {i}/" for i in range(9))]
    found = {f"{g}{m}": 0.5 for g in groups for m in ("top1", "top5", "mrr", "count", "non_finite")}
    printing.console().print(evaluate_model.table(found, "zero_shot of runs/flip"))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "group 8" in printed
