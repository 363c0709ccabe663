"""Plans ahead: the planned step is the one that `fit` compiles, and what is told about it is right."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

import flipkit
from flipkit import failures, planning, recipe
from flipkit.commands import shell
from flipkit.errors import ConfigurationError
from flipkit.planning import advice, chips, forecast, liveness, pictures, topology, variants
from flipkit.planning.ahead import Ahead
from flipkit.planning.collectives import collectives
from flipkit.planning.kept import Kept
from flipkit.planning.program import Lowered
from flipkit.planning.search import Tried, next_size
from flipkit.planning.units import unit_of
from flipkit.planning.variants import Variant

ROOT = pathlib.Path(__file__).parents[1]
ALONE = topology.parse("cpu:1")
GIB = 2**30


@pytest.fixture(scope="module")
def run():
    """A tiny FLIP in two phases, the second one unmasked."""
    return recipe.make(recipe.load("flip_vitb"), {"scale": "tiny"})


# The program is that of `fit` -----------------------------------------------------------------

SAME = """
import tempfile
import jax, flipkit
from flipkit import distribution
from flipkit.planning import topology
from flipkit.planning.program import Lowered
from keras.src.backend.jax import trainer

distribution.LEAST = 512

class Lowers(Exception):
    "Carries the program that `fit` is about to compile."

def jit(function, **options):
    made = jax.jit(function, **options)
    if getattr(function, "__name__", "") != "train_step":
        return made

    def call(state, data):
        raise Lowers(made.lower(state, data).as_text())

    return call

trainer.jit = jit
tower = dict(dim=64, depth=2, heads=8)
def image(**more): return flipkit.ViT(32, 8, **{**tower, **more})
def text(**more): return flipkit.TextTransformer(512, 16, **{**tower, **more})
def flip(image=image(dropout=0.1), text=text(), **more):
    return flipkit.FLIP(image, text, mask_ratio=0.5, dim=64, tokenizer="bytes", **more)
def run(model, phase={}, split="train", **more):
    data = flipkit.CaptionedShapes(split, 64, image_size=32)
    phase = {"pairs": 32, "batch_size": 16, "schedule": flipkit.WarmupCosine(1e-3, warmup=16), **phase}
    return flipkit.Run(model, data=data, phases=[flipkit.Phase(**phase)], **more)
def teacher():
    path = f"{tempfile.mkdtemp()}/teacher.keras"
    model = flip()
    model.build()
    model.save(path)
    return path

RUNS = {
    "plain": lambda: run(flip()),
    "remat, averages, clipping": lambda: run(
        flip(image(remat=True), text(remat=True)),
        optimizer=flipkit.AdamW(use_ema=True, global_clipnorm=1.0),
    ),
    "micro-batches": lambda: run(flip(), {"microbatch": 8}),
    "a frozen tower": lambda: run(flip(frozen=["image"])),
    "masked words, reconstruction": lambda: run(
        flip(
            text_masker="random",
            text_mask_ratio=0.5,
            reconstruction=flipkit.MAEDecoder(dim=16, depth=1, heads=2),
        )
    ),
    "a classifier": lambda: run(flipkit.Classifier(image(), 512, head_norm="batch"), split="test"),
    "another image size": lambda: run(flip(), {"image_size": 16}),
    "a teacher": lambda: run(flip(), loss=flipkit.Distillation(teacher())),
}
for name in <names>:
    for layout, mesh in <layouts>:
        made = RUNS[name]().with_overrides({"distribution": layout, "mesh": mesh})
        where = topology.parse(f"cpu:{jax.device_count()}")
        planned = Lowered(made, 0, where.devices()).text
        try:
            made.start()
        except Lowers as program:
            print(name, layout, mesh, str(program) == planned)
"""


def same(layouts, names):
    return SAME.replace("<layouts>", repr(layouts)).replace("<names>", repr(names))


@pytest.mark.parametrize(
    "layouts",
    [
        [("data_parallel", None), ("fully_sharded", "4x2")],
        pytest.param([("fully_sharded", None), ("tensor_parallel", None)], marks=pytest.mark.slow),
    ],
    ids=lambda layouts: layouts[0][0],
)
def test_the_planned_program_is_the_one_that_fit_compiles(fresh, layouts):
    found = fresh(same(layouts, ["plain"]), devices=8, JAX_PLATFORMS="cpu").splitlines()
    assert [line.endswith("True") for line in found] == [True, True], found


@pytest.mark.parametrize(
    "names",
    [
        ["remat, averages, clipping", "micro-batches"],
        *(
            pytest.param(names, marks=pytest.mark.slow)
            for names in (
                ["a frozen tower", "masked words, reconstruction"],
                ["a classifier", "another image size"],
                ["a teacher", "plain"],
            )
        ),
    ],
    ids=lambda names: ", ".join(names),
)
def test_so_it_is_whatever_the_run_is_made_of(fresh, names):
    layouts = [("fully_sharded", None)]
    found = fresh(same(layouts, names), devices=8, JAX_PLATFORMS="cpu").splitlines()
    assert [line.endswith("True") for line in found] == [True, True], found


def test_so_it_is_on_one_device(fresh):
    assert fresh(same([(None, None)], ["plain"]), JAX_PLATFORMS="cpu").split()[-1] == "True"


# What is told ---------------------------------------------------------------------------------


def test_a_plan_leaves_the_run_as_it_was(run):
    before = json.dumps(run.get_config())
    Ahead(run, ALONE, cache=False).row(Variant(0.75, "block", 4))
    assert json.dumps(run.get_config()) == before
    assert not run.model.built


def test_the_programs_flops_are_those_of_the_shapes_and_the_loss(run):
    batch, dim = run.phases[0].batch_size, run.model.dim
    for remat in (True, False):
        run = run.with_overrides({"model.image.remat": remat, "model.text.remat": remat})
        found = Lowered(run, 0, ALONE.devices()).flops
        per_pair = planning.plan(run)["phases"][0]["training_flops_per_pair"]
        assert found == pytest.approx(batch * sum(per_pair.values()) + 6 * batch**2 * dim, rel=0.03)


def test_doubling_the_depth_doubles_blocks_weights_and_moments(run):
    found = [
        Lowered(run.with_override("model.image.depth", depth), 0, ALONE.devices())
        for depth in (2, 4, 8)
    ]
    for name in ("flops", "arguments"):
        a, b, c = (getattr(each, name) for each in found)
        assert c - b == 2 * (b - a) > 0, name
    weights = [
        planning.Towers(run.with_override("model.image.depth", depth).model).parameters
        for depth in (2, 4)
    ]
    grown = found[1].arguments - found[0].arguments
    assert grown == 3 * 4 * (weights[1] - weights[0])  # float32: weights and two moments


def test_products_in_a_map_over_devices_count_once_for_each(fresh):
    code = """
import jax
from jax.sharding import PartitionSpec as P
from flipkit import planning
mesh = jax.make_mesh((4, 2), ("a", "b"))
def product(x): return jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("a"), out_specs=P("a"))(x)
x = jax.ShapeDtypeStruct((8, 5), "float32", sharding=jax.sharding.NamedSharding(mesh, P("a")))
print(planning.flops(product, x))
"""
    assert int(fresh(code, devices=8, JAX_PLATFORMS="cpu")) == 8 * 2 * 2 * 2 * 5


def test_rows_have_what_a_step_takes(run):
    ahead = Ahead(run, ALONE, cache=False)
    rows = list(ahead.rows([0.0, 0.5], ["none", "block"]))
    assert [(row["mask_ratio"], row["remat"]) for row in rows] == [
        (0.0, "none"), (0.0, "block"), (0.5, "none"), (0.5, "block")
    ]  # fmt: skip
    for row in rows:
        assert row["fits"]
        assert row["memory"]["peak"] > row["memory"]["arguments"] > 0
    by = {(row["mask_ratio"], row["remat"]): row["flops_per_device"] for row in rows}
    assert by[0.5, "none"] < by[0.0, "none"] < by[0.0, "block"]
    assert rows == json.loads(json.dumps(rows, default=list)) or rows[0]["mesh"] == (1, 1)


def test_the_ratios_are_those_of_the_paper_and_the_runs_own(run):
    ahead = Ahead(run.with_override("model.mask_ratio", 0.6), ALONE, cache=False)
    assert ahead.ratios() == [0.0, 0.5, 0.6, 0.75]
    assert Ahead(run, ALONE, index=1, cache=False).ratios() == [0.0, 0.5, 0.75]


def test_a_stronger_remat_is_tried_where_the_runs_own_does_not_fit(run, monkeypatch):
    ahead = Ahead(run, ALONE, cache=False)
    seen = []

    def row(variant):
        seen.append(variant.remat)
        return {"fits": variant.remat == "block"}

    monkeypatch.setattr(ahead, "row", row)
    assert [row["fits"] for row in ahead.rows([0.5])] == [False, False, True]
    assert seen[0] is None
    assert seen[-1] == "block"


def test_a_tower_of_someone_else_may_have_a_switch_for_remat():
    def with_towers(*remats):
        towers = {f"tower{i}": types.SimpleNamespace(remat=r) for i, r in enumerate(remats)}
        model = types.SimpleNamespace(encoders=lambda: towers)
        phases = [types.SimpleNamespace(pairs=8)]
        return types.SimpleNamespace(
            model=model, phases=phases, with_overrides=lambda values: values
        )

    switched = with_towers(False, "none")
    assert variants.remat(switched) == "none"
    assert variants.stronger(switched) == ["block"]
    told = variants.apply(switched, 0, Variant(remat="block"))
    assert told == {"model.tower0.remat": True, "model.tower1.remat": "block"}
    with pytest.raises(ConfigurationError, match="expected remat none or block"):
        variants.apply(switched, 0, Variant(remat="dots"))
    assert variants.remat(with_towers("none", "block")) == "mixed"
    assert variants.stronger(with_towers("dots")) == ["block"]
    assert variants.stronger(with_towers()) == []


def test_a_model_without_masks_or_remat_has_one_row(run):
    tower = flipkit.ViT(16, 4, dim=16, depth=1, heads=2)
    phases = [flipkit.Phase(16, 8)]
    probe = flipkit.Run(flipkit.Classifier(tower, 8), phases=phases)
    ahead = Ahead(probe, ALONE, cache=False)
    (row,) = ahead.rows()
    assert row["mask_ratio"] is None
    with pytest.raises(ConfigurationError, match="drops no patches"):
        ahead.row(Variant(0.5))


def test_a_program_for_a_tpu_takes_the_attention_of_a_tpu(monkeypatch):
    from flipkit.layers import Attention, kernels

    monkeypatch.setattr("keras.distribution.list_devices", lambda: ["gpu:0"])
    monkeypatch.setattr(kernels, "has_kernel", lambda dtype, dim: True)
    attention = Attention(16, 2)
    assert attention._implementation() == "fused"
    with kernels.platform_scope("tpu"):
        assert attention._implementation() == "einsum"
    assert attention._implementation() == "fused"


# Time and cost --------------------------------------------------------------------------------


def test_a_step_takes_its_products_and_then_its_bytes():
    where = topology.parse("v3:2x2")
    found = forecast.seconds(61.5e12, 164e9, where, 0.5)
    assert found == {"compute": 2.0, "links": 1.0, "step": 3.0, "overlapped": 2.0}


def test_a_run_takes_its_pairs_at_the_speed_of_the_step(run):
    where, pairs = topology.parse("v5e:2x2"), sum(phase.samples for phase in run.phases)
    found = forecast.whole_run(run, 8, 3_600.0, where, price=1.5)
    assert found["pairs_per_second"] == 8 / 3_600
    assert found["hours"] == pairs / 8
    assert found["chip_hours"] == 4 * pairs / 8
    assert found["cost"] == 1.5 * 4 * pairs / 8
    assert forecast.whole_run(run, 8, 1.0, where)["cost"] is None


@pytest.mark.parametrize("chip", [*chips.TPUS.values(), *chips.GPUS.values()], ids=lambda c: c.name)
def test_a_chip_has_figures_and_their_source(chip):
    assert min(chip.memory, chip.flops, chip.links) > 0
    assert chip.source
    assert chip.device_flops * chip.devices == chip.flops


# Collectives ----------------------------------------------------------------------------------

PROGRAM = """HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %s = f32[] add(%a, %a)
}

%fused.1 (p: bf16[8,16]) -> bf16[64,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,16]{1,0:T(8,128)} all-gather(%p), channel_id=15, replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(train_step)/up" stack_frame_id=3}
}

%fused.2 (p: bf16[8,16]) -> bf16[64,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,16]{1,0:T(8,128)} all-gather(%p), channel_id=15, replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(train_step)/up" stack_frame_id=3}
}

%cond (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%t), index=1
  %all-reduce.3 = f32[4]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %r = (s32[], f32[4]) tuple(%x, %all-reduce.3)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %a = bf16[64,16]{1,0} fusion(%x), kind=kLoop, calls=%fused.1
  %b = bf16[64,16]{1,0} fusion(%x), kind=kLoop, calls=%fused.2
  %max = f32[6]{0} all-reduce(%x), channel_id=1, to_apply=%add, metadata={op_name="pmax" stack_frame_id=1}
  %sum = f32[6]{0} all-reduce(%x), channel_id=1, to_apply=%add, metadata={op_name="psum" stack_frame_id=2}
  %start = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), channel_id=9, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %moved = (bf16[3,5]{1,0}, bf16[3,5]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %there = bf16[3,5]{1,0} collective-permute-done(%moved)
  %part = f32[2]{0} reduce-scatter(%x), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %loop = (s32[], f32[4]) while(%tuple), condition=%cond, body=%body
  ROOT %y = f32[4]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v3", 61.5e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("cpu", None),
    ],
)
def test_a_device_has_the_figures_of_its_chip(kind, flops):
    chip = chips.of_kind(kind)
    assert (chip and chip.device_flops) == flops


def test_collectives_count_once_for_each_time_they_run():
    found = collectives(PROGRAM, 8)
    gathered, reduced = found["all-gather"], found["all-reduce"]
    assert gathered.count == 2  # two lines of one channel are one; so are a start and its done
    assert gathered.bytes == 64 * 16 * 2 + 16 * 4
    assert gathered.sent == 7 / 8 * 64 * 16 * 2 + 3 / 4 * 16 * 4
    assert reduced.count == 2 + 12  # one channel and two origins are two; a loop of 12
    assert reduced.bytes == 2 * 6 * 4 + 12 * 4 * 4
    assert reduced.sent == 2 * 7 / 8 * 2 * 6 * 4 + 2 * 1 / 2 * 12 * 4 * 4
    assert found["collective-permute"] == (1, 30, 30, 0)
    assert found["reduce-scatter"] == (1, 8, 7 * 8, 0)


def test_a_loop_of_unknown_length_is_told():
    unknown = PROGRAM.replace("constant(12)", "parameter(1)")
    assert collectives(unknown, 8)["all-reduce"].unknown == 1
    noted = unknown.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert collectives(noted, 8)["all-reduce"] == collectives(
        PROGRAM.replace("constant(12)", "constant(7)"), 8
    )["all-reduce"]  # fmt: skip


def test_a_program_without_collectives_has_none():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.zeros((3, 3))).compile()
    assert collectives(compiled.as_text(), 1) == {}
    assert collectives("", 1) == {}


# Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(52.41G) exceeds available HBM (15.75G).",
            52.41 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 16.50G of 15.48G hbm. Exceeded hbm capacity by 1.02G.\n\nTotal hbm usage >= 17.02G:",
            16.5 * GIB,
            15.48 * GIB,
        ),
    ],
)
def test_a_compiler_tells_how_much_a_program_needs(message, needed, limit):
    assert failures.memory(message) == (needed, limit)
    assert failures.is_memory(message)


def test_another_message_is_cut_to_its_first_line():
    assert failures.memory("RESOURCE_EXHAUSTED: Too much.\nstack") is None
    assert failures.is_memory("RESOURCE_EXHAUSTED: Too much.\nstack")
    assert failures.first_line("\nRESOURCE_EXHAUSTED: Too much.\nstack") == "Too much."
    assert not failures.is_memory("INVALID_ARGUMENT: no")


def test_a_program_that_does_not_fit_is_a_row(run, monkeypatch):
    lowered = Lowered(run, 0, ALONE.devices())

    class Full:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 16.5G of 15.5G hbm. More.")

    monkeypatch.setattr(lowered, "_lowered", Full())
    found = lowered.compile()
    assert not found["fits"]
    assert found["memory"] == {"needed": 16.5 * GIB}
    assert found["problem"].startswith("Used 16.5G")


def test_what_is_alive_is_what_is_used_later():
    x = jax.ShapeDtypeStruct((256,), "float32")

    def program(function):
        return jax.make_jaxpr(function)(x).jaxpr

    size = 256 * 4

    def product(x):
        return (x.reshape(16, 16) @ x.reshape(16, 16)).reshape(256)

    assert liveness.temporaries(program(product)) == size
    assert liveness.temporaries(program(lambda x: product(product(x)))) == 2 * size
    assert liveness.temporaries(program(lambda x: product(product(product(x))))) == 2 * size
    kept = program(lambda x: product(x) * product(product(product(x))))
    assert liveness.temporaries(kept) == 3 * size


def test_elementwise_results_are_made_where_they_are_used():
    x = jax.ShapeDtypeStruct((16, 16), "float32")
    size = 16 * 16 * 4

    def most(function, **options):
        return liveness.temporaries(jax.make_jaxpr(function)(x).jaxpr, **options)

    assert most(lambda x: jnp.tanh(jnp.sin(x) + 1)) == size  # the result
    assert most(lambda x: x @ x) == size
    assert most(lambda x: x @ x, in_place=True) == 0
    assert most(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)) == size  # calls are seen through
    gradient = jax.grad(lambda x: jnp.tanh(x @ x).sum())
    assert most(gradient, in_place=True) <= 3 * size
    again = jax.grad(lambda x: jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ x) @ x) @ x)(x).sum())
    assert most(again) >= 2 * size  # what is computed again takes room, too


LINES = {
    "half": (lambda size: 5e9 + 2e5 * size, 52_500),
    "double": (lambda size: 5e9 + 7e4 * size, 150_000),
    "curved": (lambda size: 5e9 + 2e5 * size + 2 * size**2, 39_770),
    "none": (lambda size: 16e9 + size, None),
    "small": (lambda size: 5e9 + 2e7 * size, 525),
}


@pytest.mark.parametrize("name", LINES)
def test_the_largest_batch_is_found_in_few_compiles(name):
    memory, largest = LINES[name]
    tried, size, limit = {}, 65_536, 15.5e9
    while size is not None:
        tried[size] = Tried(memory(size), memory(size) <= limit)
        size = next_size(tried, limit, 4)
    fits = [size for size, each in tried.items() if each.fits]
    assert len(tried) <= 6
    if largest is None:
        assert not fits
    else:
        assert 0.92 * largest <= max(fits) <= largest


def test_a_batch_whose_need_is_unknown_is_halved():
    tried = {1_024: Tried(None, False)}
    assert next_size(tried, 1e9, 8) == 512
    assert next_size({512: Tried(None, True), **tried}, 1e9, 8) == 768


def test_the_largest_batch_has_a_limit(run):
    with pytest.raises(ConfigurationError, match="A cpu has no limit of memory"):
        Ahead(run, ALONE, cache=False).largest()


def row(ratio, remat, fits, used, **more):
    memory = {"arguments": 4 * GIB, "temporaries": None, "limit": 15.5 * GIB}
    memory |= {"peak": used * GIB, "needed": None} if fits else {"peak": None, "needed": used * GIB}
    seconds = {"compute": 1.0, "links": 0.2, "step": 1.2, "overlapped": 1.0}
    return {
        "mask_ratio": ratio, "remat": remat, "microbatch": None, "batch_size": 65_536, "fits": fits,
        "layout": "data_parallel", "mesh": (256, 1), "memory": memory, "problem": None,
        "seconds": seconds, "pairs_per_second": 54_613.0, "collectives": {}, **more,
    }  # fmt: skip


def test_what_to_change_comes_from_what_was_measured():
    rows = [row(0.0, "none", False, 140), row(0.0, "block", False, 16), row(0.5, "none", True, 9)]
    (told,) = advice.advice(rows)
    assert "Mask ratio 0.0, remat none, batch 65,536 needs 140.0 of 15.5 GiB." in told
    assert "mask ratio 0.5 with remat=none, which fits" in told
    assert (
        "distribution=fully_sharded with remat=block, which leaves about 0.02 of the 4.00 GiB"
        in (told)
    )
    assert "fully_sharded" not in advice.advice([rows[0], rows[2]])[0]  # 136 would still not fit
    assert "a microbatch" in told
    assert "--largest finds it" in told
    (told,) = advice.advice([rows[0], row(0.0, "block", True, 11)])
    assert told.endswith("remat=block fits, in 11.0 GiB.")
    found = [row(0.0, "none", True, 9, batch_size=32_768), None, None]
    assert "32,768 at most" in advice.advice(rows, found)[0]
    assert advice.advice([rows[2]]) == []


def test_bytes_are_shown_in_a_unit_that_says_something():
    assert unit_of([3 * GIB, None]).shown(GIB / 2) == "0.50"
    assert unit_of([2**20]).name == "MiB"
    assert unit_of([]).name == "KiB"
    assert unit_of([12 * GIB]).shown(12 * GIB) == "12.0"
    assert unit_of([1]).shown(None) == "?"


def test_a_picture_has_the_rows_that_fit_and_those_that_do_not(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(0.0, "none", False, 20), row(0.5, "none", True, 9), row(0.0, "dots", False, 0)]
    rows[2]["memory"]["needed"] = None
    rows.append(row(0.75, "none", True, 7, seconds=dict.fromkeys(rows[0]["seconds"])))
    path = pictures.draw(rows, tmp_path / "new" / "plan.png", title="a plan")
    assert path.stat().st_size > 10_000


# The cache ------------------------------------------------------------------------------------


def test_results_are_kept_by_program_topology_and_versions(monkeypatch, tmp_path):
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path))
    kept = Kept()
    key = kept.key("module", "v3:2x2")
    assert key != kept.key("module", "v3:4x4")
    assert key != kept.key("module ", "v3:2x2")
    assert kept.get(key) is None
    kept.put(key, {"fits": True})
    assert Kept().get(key) == {"fits": True}
    memory = Kept(on_disk=False)
    assert memory.get(key) is None
    memory.put("b", {"fits": False})
    assert memory.get("b") == {"fits": False}
    assert Kept().get("b") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\xff"])
def test_a_broken_file_of_the_cache_is_mentioned_and_made_again(
    monkeypatch, tmp_path, caplog, content
):
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path))
    kept = Kept()
    kept.put("a", {"fits": True})
    (tmp_path / "plans" / "a.json").write_bytes(content.encode("latin-1"))
    assert Kept().get("a") is None
    assert "made again" in caplog.text
    kept.put("a", {"fits": False})
    assert Kept().get("a") == {"fits": False}


def test_a_cache_that_cannot_be_written_is_mentioned(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLIPKIT_CACHE", str(tmp_path / "file"))
    Kept().put("a", {"fits": True})
    assert "not kept" in caplog.text


# GPUs -----------------------------------------------------------------------------------------


def test_gpus_are_planned_by_formula(run):
    ahead = Ahead(run.with_override("distribution", "fully_sharded"), topology.parse("gpu:h100x8"))
    plain = Ahead(run, topology.parse("gpu:h100x8")).row()
    found = ahead.row()
    assert found["by"] == "formula"
    assert found["flops"] == pytest.approx(Lowered(run, 0, ALONE.devices()).flops, rel=0.03)
    assert {*plain["collectives"]} == {"all-reduce"}
    assert {*found["collectives"]} == {"all-gather", "reduce-scatter"}
    assert found["memory"]["arguments"] == plain["memory"]["arguments"]  # nothing of 2^14 numbers
    assert found["fits"]
    single = Ahead(run, topology.parse("gpu:a100x1")).row()
    assert single["collectives"] == {}
    assert single["memory"]["temporaries"] > found["memory"]["temporaries"]


def test_the_largest_batch_on_a_gpu_is_near_its_memory(run):
    where = topology.parse("gpu:h100x1")
    found = Ahead(run, where).largest()
    assert 0.9 * where.chip.memory < found["memory"]["peak"] <= where.chip.memory


# Names and mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chips", "devices"),
    [
        ("v3:8x16", 128, 256), ("v2:1x1", 1, 2), ("v4:2x2x4", 16, 16), ("v5e:16x16", 256, 256),
        ("v5p:2x2x2", 8, 8), ("v6e:4x4", 16, 16), ("cpu:8", 8, 8), ("gpu:h100x8", 8, 8),
    ],
)  # fmt: skip
def test_a_topology_has_chips_and_devices(name, chips, devices):
    found = topology.parse(name)
    assert (found.chips, found.count, found.name) == (chips, devices, name)


def command(*arguments):
    return shell.call("plan", [*map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--topology", "v3"], "Expected v3:8x16, v4:2x2x4, v5e:16x16, v5p:2x2x2, v6e:4x4, gpu:h100x8 or"),
        (["--topology", "v3:8xa"], "Received: topology='v3:8xa'"),
        (["--topology", "v3:0x8"], "Expected v3:8x16"),
        (["--topology", "v5:8x8"], "Unknown chip 'v5'. Did you mean 'v5"),
        (["--topology", "gpu:h10x8"], "Did you mean 'h100'?"),
        (["--topology", "v4:8x16"], "Expected v4 in a shape of 3 numbers"),
        (["--topology", "cpu:2x4"], "Expected cpu in a shape of 1 number,"),
        (["--topology", "v5e:32x32"], "A v5e slice has 256 chips at most"),
        (["--topology", "v5e:3x5"], "No v5e slice has this shape: expected sides of 1, 2, 4, 8 and so on"),
        (["--topology", "v5p:2x2x6"], "expected sides of 1, 2 or a multiple of 4"),
        (["--topology", "cpu:4096"], "JAX has started with"),
        (["--topology", "cpu:1", "--phase", "7"], "Expected a phase from 0 to 1"),
        (["--topology", "cpu:1", "--mesh", "4x2"], "Expected a mesh of 1 devices"),
        (["--topology", "cpu:1", "--masks", "a"], "Expected numbers, such as --masks 0,0.5,0.75"),
        (["--topology", "cpu:1", "--masks", "1.5"], "Expected a share in [0, 1)"),
        (["--topology", "cpu:1", "--remat", "blok"], "Did you mean 'block'?"),
        (["--topology", "cpu:1", "--microbatch", "3"], "Expected a batch of whole micro-batches"),
        (["--topology", "cpu:1", "--utilisation", "40"], "Expected a share above 0 and up to 1"),
        (["--topology", "gpu:h100x3"], "Expected batches of a multiple of 3 rows"),
        (["--masks", "0.5"], "--masks needs --topology"),
        (["--largest"], "--largest needs --topology"),
        (["--topologie", "v3:8x16"], "Did you mean --topology?"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_a_sentence(capsys, monkeypatch, arguments, told):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    assert command("flip_vitb", "scale=tiny", *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_without_libtpu_the_answer_is_what_to_install(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "libtpu" else found(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flipkit.process.describe_tpus", lambda: None)
        assert command("flip_vitb", "scale=tiny", "--topology", "v3:8x16") == 2
    assert "pip install 'flipkit[tpu]'" in capsys.readouterr().err


# The command line -----------------------------------------------------------------------------


# A process in the background of a shell would ignore Ctrl-C, and so would those that it starts.
START = """
import signal
from flipkit.commands import shell
signal.signal(signal.SIGINT, signal.default_int_handler)
shell.start("plan")
"""


def started(*arguments, **options):
    """A process of `flipkit plan` on a tiny run; other keywords are environment variables."""
    words = [sys.executable, "-c", START, "flip_vitb", "scale=tiny", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env={**env, **options}, **pipes)


def test_a_plan_is_printed_written_drawn_and_kept(tmp_path):
    pytest.importorskip("matplotlib")
    written, drawn = tmp_path / "plan.json", tmp_path / "plan.png"
    arguments = ["--topology", "cpu:8", "--masks", "0,0.5", "--json", written, "--plot", drawn]
    found = []
    for _ in range(2):
        plan = started(*arguments, FLIPKIT_CACHE=str(tmp_path / "cache"))
        printed, error = plan.communicate(timeout=200)
        assert plan.returncode == 0, error
        found.append(json.loads(written.read_text()))
        assert "cpu:8: 8 devices, data_parallel 8x1" in printed
        assert "all-reduce" in printed
    assert drawn.stat().st_size > 10_000
    first, second = found
    assert [row["kept"] for row in first["rows"]] == [False, False]
    assert [row["kept"] for row in second["rows"]] == [True, True]
    for before, after in zip(first["rows"], second["rows"], strict=True):
        assert before["memory"] == after["memory"]
        assert before["collectives"] == after["collectives"]
    assert first["devices"] == 8
    assert {"flipkit", "jax", "keras"} <= first["versions"].keys()


def test_ctrl_c_leaves_what_is_known():
    plan = started("--topology", "cpu:8", "--masks", "0,0.5,0.75", "--nocache")
    lines = []
    for line in plan.stderr:
        lines.append(line)
        if len([line for line in lines if line.startswith("compiling")]) == 2:
            break
    plan.send_signal(signal.SIGINT)
    printed, error = plan.communicate(timeout=100)
    assert plan.returncode == 130, error
    assert "Stopped; 1 of the rows are known." in printed
    assert re.search(r"\n0 +none +8 ", printed), printed
    assert "Traceback" not in error


def test_the_help_imports_neither_keras_nor_jax(fresh):
    found = fresh(
        "import sys\n"
        "from flipkit.commands import shell\n"
        "try:\n"
        "    shell.call('plan', ['--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({'keras', 'jax', 'matplotlib', 'numpy'} & sys.modules.keys()))\n"
    )
    assert found.splitlines()[-1] == "[]"
    assert "--topology" in found


# TPUs -----------------------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler for TPUs, is not installed: pip install 'flipkit[tpu]'",
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("name", "layout"),
    [("v5e:2x2", "data_parallel"), ("v5e:2x2", "fully_sharded"), ("v3:2x2", "data_parallel"),
     ("v4:2x2x1", "fully_sharded"), ("v5p:2x2x1", "data_parallel"), ("v6e:2x2", "data_parallel"),
     ("v5e:1x1", None)],
)  # fmt: skip
def test_a_tpu_that_is_not_there_is_planned_for(tmp_path, name, layout):
    written = tmp_path / "plan.json"
    arguments = ["--topology", name, "--masks", "0.5", "--json", written, f"distribution={layout}"]
    plan = started(*arguments)
    _, error = plan.communicate(timeout=500)
    assert plan.returncode == 0, error
    assert error.splitlines() == [line for line in error.splitlines() if "compiling" in line]
    found = json.loads(written.read_text())
    (planned,) = found["rows"]
    chip = topology.parse(name).chip
    assert 0.9 * chip.device_memory < found["limit"] < 1.01 * chip.device_memory
    assert planned["fits"]
    assert planned["memory"]["peak"] > 0
    assert bool(planned["collectives"]) == (name != "v5e:1x1")


OF_TEXTS = (
    "frequency",
    "prioritised",
    "syntax",
    "truncate",
    "word_block",
)  # these mask words alone


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("masker", [*flipkit.plugins.names("maskers")])
def test_every_masker_compiles_for_a_tpu(tmp_path, masker):
    written = tmp_path / "plan.json"
    settings = [f"model.masker={masker}"]
    if masker in OF_TEXTS:
        settings = [f"model.text_masker={masker}", "model.text_mask_ratio=0.5"]
    arguments = ["--topology", "v5e:2x2", "--masks", "0.5", "--json", written]
    plan = started(*arguments, *settings)
    _, error = plan.communicate(timeout=500)
    assert plan.returncode == 0, error
    assert json.loads(written.read_text())["rows"][0]["fits"]
