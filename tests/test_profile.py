"""Profiling: the reading of traces, shares of made-up ones, and a tiny run by the command line."""

import gzip
import json
import pathlib
import re

import jax
import pytest

from flipkit import profiling
from flipkit.commands import shell
from flipkit.errors import ConfigurationError
from flipkit.profiling import programs, shares
from flipkit.profiling import trace as traces
from flipkit.profiling.programs import Instruction
from flipkit.profiling.trace import Operation, Trace

STEPS = (2, 4)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A tiny run, profiled by the command line: exit code, folder, what the JSON holds."""
    folder = tmp_path_factory.mktemp("profile")
    words = ["flip_small", "scale=tiny", "optimizer=adamw", "phases.0.pairs=64", "--steps=2:4"]
    files = [f"--workdir={folder / 'trace'}", f"--json={folder / 'found.json'}", "--peak=1e12"]
    code = shell.call("profile", [*words, *files])
    return code, folder, json.loads((folder / "found.json").read_text())


def message(operations=(), path="", kind="add"):
    """An operation at each (begin, end), all of one path."""
    return [Operation("x.1", begin, end, Instruction(kind, path)) for begin, end in operations]


# The command


def test_the_shares_of_a_tiny_run_sum_to_1_and_each_part_has_some(profiled):
    code, _, found = profiled
    assert code == 0
    assert sum(found["parts"].values()) == pytest.approx(1)
    assert set(found["parts"]) == set(shares.PARTS)
    for part in ("image tower", "text tower", "loss", "optimizer", "metrics"):
        assert found["parts"][part] > 0, part
    for part in ("image tower", "text tower", "loss"):
        assert 0 < found["backward"][part] < found["parts"][part], part
    busy = sum(found["parts"][part] for part in {*shares.PARTS} - {"input", "idle"})
    assert sum(x["share"] for x in found["operations"]) == pytest.approx(busy)


def test_few_operations_have_no_part(profiled):
    """Counted, not timed: a busy machine may stop any operation for a while."""
    operations = profiled[2]["operations"]
    unnamed = sum(x["count"] for x in operations if x["part"] == "other")
    assert unnamed < sum(x["count"] for x in operations) / 4


def test_the_rates_of_a_tiny_run_fit_each_other(profiled):
    _, _, found = profiled
    assert (found["steps"], found["batch_size"], found["devices"]["count"]) == ([2, 4], 8, 1)
    assert found["images_per_second"] * found["step_seconds"] == pytest.approx(8)
    assert found["flops_per_second"] * found["step_seconds"] == pytest.approx(found["flops"])
    assert found["mfu"] == pytest.approx(found["flops_per_second"] / 1e12)


def test_an_operation_of_each_step_is_counted_once(profiled):
    _, _, found = profiled
    (embed,) = (
        x
        for x in found["operations"]
        if x["name"] == "image/patch_embed/dot_general" and x["direction"] == "forward"
        if x["kind"] in ("dot", "fusion", "custom-call")
    )
    assert embed["count"] == 1


def test_the_trace_lies_where_its_viewers_look_for_it_and_nothing_else_is_kept(profiled):
    _, folder, found = profiled
    path = pathlib.Path(found["trace"])
    assert path.parents[2] == folder / "trace" / "plugins"
    with gzip.open(str(path).replace(".xplane.pb", ".trace.json.gz")) as file:
        assert json.load(file)["traceEvents"]
    kept = sorted(p.name for p in folder.rglob("*") if p.is_file())
    assert len(kept) == 3, kept


@pytest.mark.slow
def test_the_example_in_the_document_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (pathlib.Path(__file__).parents[1] / "docs" / "profiling.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert capsys.readouterr().out


def test_the_tables_name_the_parts_and_say_how_to_open_the_trace(profiled, tmp_path, capsys):
    _, _, found = profiled
    from flipkit.commands import printing, profile_recipe

    console = printing.console()
    for table in (profile_recipe.parts_table, profile_recipe.operations_table):
        console.print(table(found))
    console.print(profile_recipe.step_table({**found, "mfu": None, "peak": None}, "x"))
    printed = capsys.readouterr().out
    assert "image tower" in printed
    assert "unknown: set --peak" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Expected a recipe: flipkit profile RECIPE"),
        (["flip_small", "--steps=15:10"], "Expected a:b"),
        (["flip_small", "--steps=0:3"], "Expected a:b"),
        (["flip_small", "--steps=10..15"], "Expected a:b"),
        (["flip_small", "--peak=0"], "--peak"),
        (["flip_smal"], "Did you mean 'flip_small'"),
        (["flip_small", "scale=tiny", "--steps=1:9"], "first phase, which has 2. Received"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(words, told, capsys, tmp_path):
    assert shell.call("profile", [*words, f"--workdir={tmp_path}"]) == 2
    complained = capsys.readouterr().err
    assert told in complained
    assert complained.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_backend_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with pytest.raises(ConfigurationError, match=r"Set KERAS_BACKEND=jax\."):
        profiling.profile(None, tmp_path)


def test_help_imports_no_framework(fresh):
    found = fresh(
        "import sys\n"
        "from flipkit.commands import shell\n"
        "try:\n"
        "    shell.call('profile', ['--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({'keras', 'jax', 'numpy'} & sys.modules.keys()))\n"
    )
    assert found.startswith("`flipkit profile RECIPE")
    assert found.strip().endswith("[]")


# Parts


@pytest.mark.parametrize(
    ("path", "part", "label"),
    [
        ("jit(train_step)/jvp(image)/image/block_00/mlp/up/dot_general", "image tower",
         "image/block_*/mlp/up/dot_general"),
        ("jit(train_step)/transpose(jvp(image))/image/block_11/mul", "image tower", "image/block_*/mul"),
        ("jit(train_step)/jvp(text)/text/jit(_take)/lt", "text tower", "text/lt"),
        ("jit(train_step)/transpose(jvp(loss))/while/body/mul", "loss", "loss/mul"),
        ("jit(train_step)/optimizer/adamw/image/add", "optimizer", "optimizer/adamw/image/add"),
        ("jit(train_step)/jvp(tower/image)/mul", "image tower", "tower/image/mul"),
        ("jit(train_step)/jvp()/mul", "other", "mul"),
        ("jit(f)/(jvp(loss)/psum:metrics/psum:jvp(image)/add)", "loss", "loss/psum"),
        ("jit(f)/while/body/closed_call/image/while/body/block_3/mul", "image tower", "image/block_*/mul"),
        ("jit(train_step)/imaged/mul", "other", "imaged/mul"),
        ("reduce_sum", "other", "reduce_sum"),
        ("", "other", ""),
    ],
)  # fmt: skip
def test_a_path_has_a_part_and_a_label(path, part, label):
    assert shares.part_of(path) == part
    assert shares.label_of(path) == label


def test_what_jax_transposed_is_backward():
    assert shares.is_backward("jit(f)/while/body/transpose(jvp(image))/block_0/mul")
    assert not shares.is_backward("jit(f)/jvp(image)/block_0/transpose")
    assert not shares.is_backward("jit(f)/(jvp(loss)/psum:transpose(jvp(image))/psum)")


def test_a_models_own_names_of_towers_are_scopes_too():
    path = "jit(train_step)/jvp(vi_t)/block_00/mul"
    assert shares.part_of(path) == "other"
    assert shares.part_of(path, {"vi_t": "image tower"}) == "image tower"


# Shares


def test_operations_at_one_time_share_it_and_gaps_are_input_or_idle():
    forward = message([(0, 10)], "jit(f)/jvp(image)/mul")
    backward = message([(5, 10), (40, 90)], "jit(f)/transpose(jvp(image))/mul")
    late = message([(95, 120)], "jit(f)/optimizer/add")
    trace = Trace(0, 100, {"CPU:0": forward + backward + late}, [(8, 25), (30, 35), (80, 92)])
    found = shares.shares(trace)
    expected = dict.fromkeys(shares.PARTS, 0.0)
    expected |= {"image tower": 0.6, "optimizer": 0.05, "input": 0.22, "idle": 0.13}
    assert found["parts"] == pytest.approx(expected)
    assert found["backward"]["image tower"] == pytest.approx(0.525)
    first, *_ = found["operations"]
    assert first["share"] == pytest.approx(0.525)
    del first["share"]
    assert first == {
        "name": "image/mul",
        "kind": "add",
        "part": "image tower",
        "direction": "backward",
        "count": 2,
    }


def test_shares_are_means_over_devices():
    operations = {"a": message([(0, 10)], "loss/mul"), "b": message([(0, 5)], "loss/mul")}
    found = shares.shares(Trace(0, 10, operations, []))
    assert found["parts"]["loss"] == pytest.approx(0.75)
    assert found["parts"]["idle"] == pytest.approx(0.25)


def test_operations_of_one_layer_kind_are_one_row():
    paths = [f"jvp(image)/block_{i}/mul" for i in range(3)]
    operations = [x for i, p in enumerate(paths) for x in message([(i, i + 1)], p)]
    (row,) = shares.shares(Trace(0, 3, {"a": operations}, []))["operations"]
    assert (row["name"], row["count"], row["share"]) == ("image/block_*/mul", 3, pytest.approx(1))


# Files


def varint(value):
    low = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(x | 128 for x in low[:-1]), low[-1]])


def field(number, value):
    """A field of a protocol buffer: a number, or bytes or a text."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_fields_of_a_message_are_read():
    message = (
        field(1, 300) + field(2, "name") + varint(3 << 3 | 1) + b"8 bytes!" + field(1 << 20, 0)
    )
    found = [(n, v if isinstance(v, int) else bytes(v)) for n, v in programs.fields(message)]
    assert found == [(1, 300), (2, b"name"), (3, b"8 bytes!"), (1 << 20, 0)]


def test_the_programs_in_a_trace_are_read():
    instruction = (
        field(1, "fusion.3") + field(2, "fusion") + field(7, field(1, "mul") + field(2, "a/mul"))
    )
    bare = field(1, "copy.1") + field(2, "copy")
    module = field(1, "jit_f") + field(3, field(1, "main") + field(2, instruction) + field(2, bare))
    event = field(2, "jit_f(7)") + field(5, field(1, 1) + field(6, field(1, module)))
    plane = field(2, "/host:metadata") + field(4, field(1, 7) + field(2, event))
    assert programs.programs(field(1, field(2, "/host:CPU")) + field(1, plane)) == {
        "jit_f(7)": {"fusion.3": Instruction("fusion", "a/mul"), "copy.1": Instruction("copy", "")}
    }


# Traces as a CPU writes them, and as a GPU and a TPU do after XLA's sources: none was at hand.
WINDOWED = """
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 offset_ps: 0 duration_ps: 100000 } }
  event_metadata { key: 1 value { id: 1 name: "flipkit:steps" } }
}
"""
CPU = """
planes {
  name: "/host:CPU"
  lines { name: "tf_XLAEigen/1"
    events { metadata_id: 1 offset_ps: 10000 duration_ps: 5000
             stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 int64_value: 7 }
             stats { metadata_id: 4 int64_value: 1 } }
    events { metadata_id: 3 offset_ps: 0 duration_ps: 90000 } }
  lines { name: "tf_XLAEigen/2"
    events { metadata_id: 2 offset_ps: 40000 duration_ps: 1000 stats { metadata_id: 3 int64_value: 7 } } }
  event_metadata { key: 1 value { id: 1 name: "dot.1" } }
  event_metadata { key: 2 value { id: 2 name: "end: dot.1" } }
  event_metadata { key: 3 value { id: 3 name: "ThunkExecutor::Execute" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "_p" } }
  stat_metadata { key: 3 value { id: 3 name: "_c" } }
  stat_metadata { key: 4 value { id: 4 name: "device_ordinal" } }
}
"""
GPU = """
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #14(Compute)"
    events { metadata_id: 1 offset_ps: 10000 duration_ps: 30000
             stats { metadata_id: 1 str_value: "fusion.3" }
             stats { metadata_id: 2 str_value: "jit(f)/transpose(jvp(text))/mul" } }
    events { metadata_id: 2 offset_ps: 50000 duration_ps: 10000 } }
  lines { name: "Framework Ops" events { metadata_id: 1 offset_ps: 0 duration_ps: 90000 } }
  event_metadata { key: 1 value { id: 1 name: "loop_multiply" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyH2D" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "tf_op" } }
}
"""
TPU = """
planes {
  name: "/device:TPU:0"
  lines { name: "XLA Ops"
    events { metadata_id: 2 offset_ps: 0 duration_ps: 60000 }
    events { metadata_id: 1 offset_ps: 10000 duration_ps: 30000 } }
  lines { name: "XLA Modules" events { metadata_id: 1 offset_ps: 0 duration_ps: 90000 } }
  event_metadata { key: 1 value { id: 1 name: "%fusion.3 = f32[8]{0} fusion(f32[8]{0} %p), kind=kLoop" } }
  event_metadata { key: 2 value { id: 2 name: "%while.1 = (f32[8]) while((f32[8]) %t)" } }
}
planes {
  name: "/host:metadata"
  event_metadata { key: 7 value { id: 7 name: "jit_f(7)" stats { metadata_id: 1 bytes_value: "PROGRAM" } } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_proto" } }
}
"""


def written(path, text):
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(WINDOWED + text))
    return path


def test_an_operation_of_a_cpu_lasts_until_its_threads_are_done(tmp_path):
    found = traces.read(written(tmp_path / "x.xplane.pb", CPU))
    (dot,) = found.devices["CPU:1"]
    assert (dot.name, dot.begin, dot.end) == ("dot.1", 10, 40)
    assert dot.instruction == Instruction("dot", "")


def test_events_of_a_gpu_are_operations_with_their_paths(tmp_path):
    found = traces.read(written(tmp_path / "x.xplane.pb", GPU))
    fusion, copy = found.devices["/device:GPU:0"]
    assert (found.begin, found.end, fusion.begin, fusion.end) == (0, 100, 10, 40)
    assert (fusion.name, fusion.instruction.kind) == ("fusion.3", "fusion")
    assert shares.part_of(fusion.instruction.path) == "text tower"
    assert (copy.name, copy.instruction) == ("MemcpyH2D", Instruction("MemcpyH2D", ""))


def test_events_of_a_tpu_are_found_in_its_programs_and_a_loop_is_not_counted_twice(tmp_path):
    names = {"fusion.3": ("fusion", "jit(f)/jvp(image)/mul"), "while.1": ("while", "")}
    body = b"".join(
        field(2, field(1, name) + field(2, kind) + field(7, field(2, path)))
        for name, (kind, path) in names.items()
    )
    program = field(1, field(3, body))
    text = TPU.replace("PROGRAM", "".join(f"\\{byte:03o}" for byte in program))
    found = traces.read(written(tmp_path / "x.xplane.pb", text))
    (fusion,) = found.devices["/device:TPU:0"]
    assert shares.part_of(fusion.instruction.path) == "image tower"
    assert (fusion.begin, fusion.end) == (10, 40)


def test_a_trace_without_operations_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="The trace has no operations"):
        traces.read(written(tmp_path / "x.xplane.pb", ""))
