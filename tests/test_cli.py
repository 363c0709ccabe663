"""The command lines: what they print, what they leave, and how they answer mistakes."""

import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
from absl import flags
from PIL import Image

from flipkit import position, recipe
from flipkit.commands import shell
from flipkit.recipe import meanings
from flipkit.records.journal import Journal
from flipkit.training.loop import Loop, _Windows

HERE = pathlib.Path(__file__).parents[1]
TINY = '''"""A tiny run of four steps, for tests."""

import flipkit


class Blind(flipkit.TextTransformer):
    """An image encoder without a grid."""

    image_size = 32


def recipe(path=None, mask_ratio=0.5, batch_size=8, pairs=32, image_size=32):
    tower = {"dim": 16, "depth": 1, "heads": 2}
    image = flipkit.ViT(image_size=image_size, patch_size=8, **tower)
    text = flipkit.TextTransformer(vocab=259, length=16, **tower)
    return flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=16, tokenizer="bytes"),
        data=flipkit.ImageTextShards(path),
        feed=flipkit.Feed(crop=None, threads=1),
        phases=[flipkit.Phase(pairs, batch_size, flipkit.WarmupCosine(1e-3))],
        log_every=2,
    )
'''


def write_shard(path, count=24, broken=()):
    """A tar of `count` coloured pictures with captions and labels; those in `broken` lack a part."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            file = io.BytesIO()
            pixels = np.full((32, 40, 3), rng.integers(0, 256, 3), "uint8")
            Image.fromarray(pixels).save(file, "PNG")
            members = {
                "png": b"no picture" if i in broken else file.getvalue(),
                "txt": f"picture {i % 20}".encode(),
                "json": json.dumps({"label": i % 3}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recipes and shards, sound and otherwise."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.py").write_text(TINY)
    (folder / "empty.py").write_text("data = 3")
    (folder / "wrong.json").write_text("{}")
    (folder / "names.json").write_text('["red", "green", "blue"]')
    sound = write_shard(folder / "train-0.tar")
    write_shard(folder / "train-1.tar", count=8)
    write_shard(folder / "broken.tar", count=40, broken=range(0, 40, 4))
    data = pathlib.Path(sound).read_bytes()
    (folder / "cut.tar").write_bytes(data[: len(data) // 2 - 700])
    with tarfile.open(folder / "hollow.tar", "w"):
        pass
    return folder


@pytest.fixture
def cli(folder, monkeypatch, capsys):
    """Runs a command line in this process, in `folder`: (exit code, printed, complained)."""
    monkeypatch.chdir(folder)

    def call(*arguments, program="run"):
        return shell.call(program, [*map(str, arguments)]), *capsys.readouterr()

    return call


def complaint(answer):
    """The one message of a command line that refused."""
    code, _, complained = answer
    assert code == 2
    assert complained.startswith("flipkit: ")
    assert "Traceback" not in complained
    assert len(complained) < 1_500
    return complained


def process(*arguments, seconds=300, **environment):
    """A command line in a process of its own, ended after so many seconds."""
    env = {**os.environ, "PYTHONPATH": str(HERE), **environment}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds)


@pytest.fixture(scope="module")
def finished(folder):
    """The workdir of a run by the command line, and the process that made it."""
    workdir = folder / "finished"
    path = f"path={folder}/train-*.tar"
    done = process("flipkit.run", folder / "tiny.py", path, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


# What they do


def screen(written):
    """The lines that a terminal shows after `written`: carriage returns, moves up, erased lines."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|[^\x1b]", written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A"):
            row -= int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + piece + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def terminal(monkeypatch):
    """Calls a function while stderr is a terminal; returns what was written there."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo terminals")

    def call(function, *arguments):
        reading, writing = pty.openpty()
        with os.fdopen(writing, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            patch.setenv("TERM", "xterm")
            function(*arguments)
            stderr.write("end")
            stderr.flush()
            written = ""
            while not written.endswith("end"):
                written += os.read(reading, 1 << 16).decode()
        os.close(reading)
        return written.removesuffix("end").replace("\r\n", "\n")

    return call


def keep(say):
    """Two windows of a run, as its loop sees them."""
    phase = types.SimpleNamespace(steps=4, samples=32, batch_size=8)
    model = types.SimpleNamespace(
        meter=types.SimpleNamespace(programs=1),
        optimizer=types.SimpleNamespace(learning_rate=0.25, use_ema=False),
        trainable_variables=[],
    )
    told = types.SimpleNamespace(
        phases=[phase], steps=4, model=model, evaluators={}, log_every=2, evaluate_every=0
    )
    told.position = functools.partial(position.at, told.phases)
    callback = _Windows(Loop(told, Journal(None, {}), say), 0, 0, types.SimpleNamespace(rejects=[]))
    callback.set_model(model)
    callback.on_train_begin()
    for window in range(2):
        for batch in range(2):
            callback.on_train_batch_end(batch)
        callback.on_epoch_end(window, {"loss": 2.5})
    callback.on_train_end()


LINES = ["step 2/4  loss 2.500  rate 2.50e-01", "step 4/4  loss 2.500  rate 2.50e-01"]


def test_lines_of_progress_go_to_the_log_where_stderr_is_a_terminal(terminal):
    said = []
    bar = terminal(keep, said.append)
    assert said == LINES
    assert "compiling" in bar
    assert "loss" not in bar


def test_bar_and_lines_of_progress_share_a_terminal(terminal):
    written = terminal(keep, lambda line: print(line, file=sys.stderr, flush=True))
    assert "compiling" in written
    assert screen(written) == LINES


def test_run_shows_a_table_progress_and_what_it_wrote(finished):
    workdir, done = finished
    for told in (
        "ViT(image_size=32", "8 of 16 patches (mask ratio 0.5)", "plugins",
        "32 pairs, 4 steps of 8", "Starting at step 0.", "step 4/4", "Done: 32 pairs", "model.keras",
    ):  # fmt: skip
        assert told in done.stdout, told
    assert "learning rate 0 at the end" in done.stdout
    assert json.loads((workdir / "run.json").read_text())["recipe"].endswith("tiny.py")
    assert "Traceback" not in done.stderr


def test_same_command_again_resumes_and_says_so(finished, cli):
    workdir, _ = finished
    code, printed, _ = cli("tiny.py", f"path={workdir.parent}/train-*.tar", f"--workdir={workdir}")
    assert code == 0
    assert "Resuming at step 4 of 4." in printed


def test_recipes_are_listed_with_what_they_are(cli):
    code, printed, _ = cli("--recipes")
    assert code == 0
    for name in ("flip_vitl", "flip_vitb", "clip_vitb", "flip_small", "flip_shapes"):
        assert name in printed
    assert "FLIP ViT-L/16" in printed


def test_what_can_be_set_is_listed(cli):
    code, printed, _ = cli("tiny.py", "--list", "path=shards/[0-9]*.tar", "model.mask_ratio=0.25")
    assert code == 0
    for told in (
        "Arguments of the recipe", "batch_size", "model.image.patch_size", "phases.0.schedule.peak",
        "feed.captions", "optimizer.weight_decay", "shards/[0-9]*.tar", "0.25",
    ):  # fmt: skip
        assert told in printed, told


def test_finished_run_is_judged_and_the_findings_kept(finished, cli):
    workdir, _ = finished
    data = "data=train-*.tar"
    code, printed, _ = cli(workdir, "zero_shot", data, "classnames=names.json", program="evaluate")
    assert code == 0
    assert "top1" in printed
    [found] = json.loads((workdir / "evaluations.json").read_text())["results"]
    assert found["found"]["count"] == 32
    assert found["settings"]["classnames"] == "names.json"
    code, printed, _ = cli(workdir / "model.keras", "retrieval", data, program="evaluate")
    assert code == 0
    found = json.loads((workdir / "evaluations.json").read_text())["results"][-1]["found"]
    assert (found["images"], found["texts"]) == (32, 20)
    assert "recall@10" in printed


def test_run_goes_from_its_record_to_another_workdir(finished, cli, tmp_path):
    workdir, _ = finished
    code, printed, _ = cli(workdir / "run.json", "log_every=4", "--workdir", tmp_path / "again")
    assert code == 0
    assert "Done: 32 pairs" in printed
    assert (tmp_path / "again" / "start.json").read_text() == (workdir / "start.json").read_text()


def test_vitl_scaled_down_ends_with_a_rate_of_zero(cli, tmp_path):
    """With thinner towers; test_vitl_runs_on_a_cpu has the whole ones."""
    thin = [f"model.{tower}.{name}={value}" for tower in ("image", "text")
            for name, value in {"dim": 16, "depth": 1, "heads": 2, "dtype": "float32"}.items()]  # fmt: skip
    settings = ["data=captioned_shapes", "batch_size=8", "pairs=16", "image_size=32"]
    rest = ["data.size=64", "feed.workers=0", "model.dim=16", "model.text.vocab=300"]
    code, printed, complained = cli(
        "flip_vitl", *settings, *thin, *rest, "--workdir", tmp_path / "vitl"
    )
    assert code == 0, complained
    assert "Done: 16 pairs" in printed
    assert "learning rate 0 at the end" in printed


@pytest.mark.slow
def test_vitl_runs_on_a_cpu(tmp_path):
    settings = ["data=captioned_shapes", "batch_size=8", "pairs=16"]
    command = ("flipkit.run", "flip_vitl", *settings, "--workdir", tmp_path / "vitl")
    done = process(*command, seconds=1_500)
    assert done.returncode == 0, done.stderr
    assert "learning rate 0 at the end" in done.stdout


@pytest.mark.parametrize("width", ["80", "120"])
def test_list_tells_what_each_setting_means(cli, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    code, printed, _ = cli("tiny.py", "--list", "path=x.tar", "model.image", "phases")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= int(width)
    assert re.search(r"model\.image\.patch_size=8 +pixels per side of a patch", printed)
    assert re.search(r"model\.image\.depth=1 +blocks *\n", printed)
    assert re.search(r"phases\.0\.batch_size=8 +pairs per step", printed)
    assert "model.text.dim" not in printed
    assert "Did you mean 'model.image'" in complaint(cli("tiny.py", "--list", "model.imge"))


@pytest.mark.parametrize("name", ["flip_small", "fine_tune"])
def test_every_setting_of_a_shipped_recipe_has_a_meaning(name):
    function = recipe.load(name)
    made = function()
    found = [s for settings in meanings.settings(function, made).values() for s in settings]
    assert {s.path for s in found} >= {*recipe.dials(function), "feed.captions", "seed"}
    assert [s.path for s in found if not s.meaning] == []


def test_arguments_are_read_from_a_docstring():
    told = meanings.arguments("""Does it.

    Args:
        width, depth: pixels, blocks.
        rate (float): share that is dropped: in [0, 1). None
            drops nothing.
        **more: of the parent.
        one, two,
            three: as many.

    Returns:
        nothing: at all.
    """)
    assert told == {
        "width": "pixels", "depth": "blocks", "more": "of the parent.",
        "one": "as many.", "two": "as many.", "three": "as many.",
        "rate": "share that is dropped: in [0, 1). None drops nothing.",
    }  # fmt: skip


# How they answer mistakes


@pytest.mark.parametrize(
    ("words", "settings", "told"),
    [
        (["--pairs", "640"], True, "Unknown flag --pairs. Settings are written name=value: pairs=640"),
        (["--pairs=640"], True, "Unknown flag --pairs. Settings are written name=value: pairs=640"),
        (["--model.dim", "a=b"], True, "Unknown flag --model.dim. Settings are written name=value: "
         "model.dim=..."),
        (["--wrkdir", "x"], True, "Unknown flag --wrkdir. Did you mean --workdir?"),
        (["--pairs", "640"], False, "Unknown flag --pairs. Known: --workdir, --list."),
    ],
)  # fmt: skip
def test_flag_that_is_none_is_answered_in_a_line(capsys, words, settings, told):
    own = shell.Flags()
    for name in ("workdir", "list"):
        flags.DEFINE_string(name, None, "", flag_values=own)
    assert shell.answer(lambda words: own.words(words, "", settings), ["tiny.py", *words]) == 2
    assert capsys.readouterr().err == f"flipkit: {told}\n"


def test_every_command_starts_alike():
    doors = [path for path in (HERE / "flipkit").glob("*.py") if "__main__" in path.read_text()]
    doors += (HERE / "flipkit").glob("*/__main__.py")
    names = {re.search(r'^    shell.start\("(\w+)"\)$', p.read_text(), re.M)[1] for p in doors}
    assert names == shell.own_commands().keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Expected a recipe: flipkit run RECIPE"),
        (["flip_vitll"], "Did you mean 'flip_vitl'? Known:"),
        (["missing/tinny.py"], "No recipe file: missing/tinny.py"),
        (["empty.py"], "empty.py has no function `recipe`"),
        (["wrong.json"], "Expected the run.json that a run wrote"),
        (["tiny.py", "batch_size"], "Expected name=value. Received: 'batch_size'"),
        (["tiny.py", "bach_size=3"], "Did you mean 'batch_size'"),
        (["tiny.py", "model.mask_ration=0.3"], "Did you mean 'model.mask_ratio'"),
        (["tiny.py", "modell.mask_ratio=0.3"], "Did you mean 'model.mask_ratio'"),
        (["tiny.py", "model.masker=randon"], "Did you mean 'random'"),
        (["tiny.py", "model.image=vitt"], "Did you mean 'vit'"),
        (["tiny.py", "distribution=data_paralell"], "Did you mean 'data_parallel'"),
        (["tiny.py", "mask_ratio=1.5"], "in [0, 1). Received: mask_ratio=1.5"),
        (["tiny.py", "model.mask_ratio=-1"], "in [0, 1). Received: mask_ratio=-1"),
        (["tiny.py", "phases.0.mask_ratio=1"], "in [0, 1). Received: mask_ratio=1"),
        (["tiny.py", "image_size=30"], "the nearest sizes are [24, 32]"),
        (["tiny.py", "model.image.patch_size=7"], "divisible by the patch size"),
        (["tiny.py", "batch_size=many"], "Expected a number, such as 8. Received: batch_size="),
        (["tiny.py", "pairs=4"], "A phase needs at least one batch. Received: pairs=4"),
        (["tiny.py"], "No data to train on: set data.path="),
        (["tiny.py", "data=none"], "No data to train on: set data.path="),
        (["flip_vitl"], "No data to train on: set data.path="),
        (["flip_small"], "No data to train on: set data.path="),
        (["tiny.py", "path=trian-*.tar"], "No file matches 'trian-*.tar'"),
        (["tiny.py", "path=train-{0..3}.tar"], "2 names are missing, the first is 'train-2.tar'"),
        (["tiny.py", "path=cut.tar"], "cut.tar is cut short"),
        (["tiny.py", "path=hollow.tar"], "hold no sample"),
        (["tiny.py", "path=tiny.py"], "no tar file"),
        (["tiny.py", "path=train-1.tar", "batch_size=16"], "batch_size=16 and 8 samples"),
        (["tiny.py", "path=broken.tar"], "more than the 1.0% that feed.bad_limit allows"),
        (["tiny.py", "path=train-0.tar", "phases.0.schedule.warmup=99"], "warm-up shorter than"),
        (["tiny.py", "path=train-0.tar", "optimizer.no_decay=['bais']"], "Did you mean 'bias'"),
        (["tiny.py", "path=train-0.tar", "model.text.vocab=99"], "259 ids"),
    ],
)  # fmt: skip
def test_run_answers_a_mistake_with_one_message(cli, tmp_path, arguments, told):
    assert told in complaint(cli(*arguments, "--workdir", tmp_path / "work"))


def test_masked_run_of_an_encoder_that_cant_skip_patches_is_refused(cli, folder):
    code = (folder / "tiny.py").read_text().replace("image = flipkit.ViT(", "image = Blind(")
    code = code.replace("image_size=image_size, patch_size=8, ", "vocab=9, length=4, ")
    (folder / "blind.py").write_text(code)
    told = complaint(cli("blind.py"))
    assert "Blind cannot skip patches" in told
    assert "Set mask_ratio=0 or masker=None" in told


def test_workdir_of_another_recipe_is_refused(finished, cli):
    workdir, _ = finished
    told = complaint(cli("tiny.py", "path=train-0.tar", "mask_ratio=0.75", "--workdir", workdir))
    assert "holds another run" in told
    assert "model.mask_ratio: 0.5 there, 0.75 here" in told


def test_a_mistake_leaves_the_workdir_free(cli, tmp_path):
    assert complaint(cli("tiny.py", "path=train-1.tar", "batch_size=16", "--workdir", tmp_path))
    code, printed, _ = cli("tiny.py", "path=train-1.tar", "pairs=16", "--workdir", tmp_path)
    assert code == 0, printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Expected a model and an evaluator"),
        (["finished"], "Expected a model and an evaluator"),
        (["finishd", "retrieval", "data=x.tar"], "Did you mean 'finished'"),
        (["running", "retrieval", "data=x.tar"], "Received: running, which is none of them"),
        (["finished", "retreival", "data=x.tar"], "Did you mean 'retrieval'"),
        (["finished", "retrieval"], "retrieval needs data"),
        (["finished", "retrieval", "dat=x.tar"], "Did you mean 'data'"),
        (["finished", "retrieval", "data"], "Expected name=value"),
        (["finished", "retrieval", "data=x.tar"], "No file matches 'x.tar'"),
        (["finished", "retrieval", "data=captioned_shape"], "Did you mean 'captioned_shapes'"),
        (["finished", "zero_shot", "data=train-1.tar"], "set classnames=FILE.json"),
        (["finished", "zero_shot", "data=train-1.tar", "classnames=nmes.json"], "nmes.json"),
        (["finished", "zero_shot", "data=train-1.tar", "classnames=wrong.json"], "class names"),
        (["finished", "zero_shot", "data=train-1.tar", "classnames=names.json",
          "templates=openai80"], "Did you mean 'openai_80'"),
        (["finished", "caption_choice", "data=train-1.tar"], "two texts"),
    ],
)  # fmt: skip
def test_evaluate_answers_a_mistake_with_one_message(finished, cli, folder, arguments, told):
    (folder / "running").mkdir(exist_ok=True)
    assert told in complaint(cli(*arguments, program="evaluate"))


def test_a_file_that_is_no_model_is_refused(finished, cli, folder):
    shutil.copy(folder / "names.json", folder / "names.keras")
    told = complaint(cli("names.keras", "retrieval", "data=train-1.tar", program="evaluate"))
    assert "names.keras" in told


def test_mistake_ends_the_process_with_2_and_no_traceback(folder):
    done = process("flipkit.run", "flip_vitll")
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("flipkit: Unknown recipe: 'flip_vitll'")


@pytest.mark.slow  # imports TensorFlow; test_training has the sentence
def test_other_backend_is_refused_in_one_line(folder):
    pytest.importorskip("tensorflow")
    arguments = ["flipkit.run", folder / "tiny.py", f"path={folder}/train-0.tar"]
    done = process(*arguments, "--workdir", folder / "other", KERAS_BACKEND="tensorflow")
    assert done.returncode == 2, done.stderr
    assert "Set KERAS_BACKEND=jax." in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
