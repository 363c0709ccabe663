"""The paper's recipes (arXiv 2212.00794): Tables 1, 9 and 10, the official code's numbers, tiny runs."""

import json
import math
import pathlib

import numpy as np
import pytest

import flipkit
from flipkit import planning, recipe
from flipkit.encoders import shape_only, weights
from flipkit.errors import ConfigurationError
from flipkit.weights import initial

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden"
PAPER = (
    "flip_vitb",
    "flip_vitl",
    "flip_vith",
    "flip_vitl14",
    "clip_vitb",
    "clip_vitl",
    "flip_table1",
)
# Tiny, they are what another one is.
ALIKE = ("flip_vitb", "flip_vitl14", "flip_vith", "flip_table1", "clip_vitl")
RECIPES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in recipe.names()
]


@pytest.fixture(scope="module")
def runs():
    """The runs of the paper's recipes, by name."""
    return {name: recipe.load(name)() for name in PAPER}


@pytest.fixture(scope="module")
def towers(runs):
    """Their towers, planned."""
    return {name: planning.Towers(run.model) for name, run in runs.items()}


def official(name, **dials):
    return recipe.load("flip_released")(name, **dials)


# Table 9


@pytest.mark.parametrize(
    ("name", "dim", "image", "text", "millions"),
    [
        ("flip_vitb", 512, (12, 768, 12), (12, 512, 8), (86, 53, 140)),  # 141 in the paper
        ("flip_vitl", 768, (24, 1024, 16), (12, 768, 12), (303, 109, 413)),  # 414 in the paper
        ("flip_vith", 1024, (32, 1280, 16), (24, 1024, 16), (631, 334, 967)),
        ("clip_vitb", 512, (12, 768, 12), (12, 512, 8), (86, 53, 140)),
        ("clip_vitl", 768, (24, 1024, 16), (12, 768, 12), (303, 109, 413)),
        ("flip_table1", 768, (24, 1024, 16), (12, 768, 12), (303, 109, 413)),
    ],
)
def test_towers_are_those_of_table_9(runs, towers, name, dim, image, text, millions):
    model, plan = runs[name].model, towers[name]
    assert model.dim == dim
    for tower, sizes in ((model.image, image), (model.text, text)):
        assert (tower.depth, tower.dim, tower.heads) == sizes
    assert model.image.image_size == 224
    assert model.image.patch_size == (14 if name == "flip_vith" else 16)
    assert (model.text.vocab, model.text.length, model.text.causal) == (30_522, 32, False)
    summary = plan.summary("image")
    positions = summary["with_fixed_positions"] - summary["parameters"]
    counts = summary["with_fixed_positions"], plan.summary("text")["parameters"]
    assert tuple(round(count / 1e6) for count in counts) == millions[:2]
    assert round((plan.parameters + positions) / 1e6) == millions[2]


@pytest.mark.parametrize("name", ["flip_vitb", "flip_vitl", "flip_vitl14", "flip_vith"])
def test_the_document_has_the_counts(towers, name):
    text = (pathlib.Path(__file__).parents[1] / "docs" / "paper.md").read_text(encoding="utf-8")
    image, words = towers[name].summary("image"), towers[name].summary("text")
    counts = image["parameters"], image["with_fixed_positions"], words["parameters"]
    for count in (*counts, towers[name].parameters):
        assert f"| {count:,} |" in text


# Table 1


@pytest.mark.parametrize(
    ("name", "both", "image"),
    [
        ("flip_vitb", (0.528, 0.300), None),
        ("flip_vitl", (0.5175, 0.2817), (0.496, 0.250)),
        ("flip_vith", (0.522, 0.289), None),
    ],
)
def test_masking_saves_what_table_1_says(towers, name, both, image):
    whole, half, quarter = (towers[name].masking(ratio) for ratio in (0, 0.5, 0.75))
    assert whole["ratio"] == whole["image_ratio"] == whole["official_ratio"] == 1
    digits = 4 if name == "flip_vitl" else 3
    assert (
        round(half["official_ratio"], digits),
        round(quarter["official_ratio"], digits),
    ) == both
    if image:
        found = half["official_image_ratio"], quarter["official_image_ratio"]
        assert tuple(round(ratio, 3) for ratio in found) == image
        costs = whole["flops_by_tower"]
        assert round(costs["text"] / costs["image"], 4) == 0.0445
        assert [round(row["ratio"], 2) for row in (half, quarter)] == [0.52, 0.28]  # flipkit's own
    encoder = towers[name].model.image
    embedding = 2 * 3 * encoder.patch_size**2 * encoder.dim  # FLOPs a patch: what flipkit saves
    for row, dropped in ((half, 0.5), (quarter, 0.75)):
        saved = (row["official_ratio"] - row["ratio"]) * whole["flops"]
        assert saved == pytest.approx(dropped * math.prod(encoder.grid) * embedding)


def test_mask_ratios_are_of_the_tokens_the_paper_has(towers):
    found = [towers["flip_vitl"].tokens("image", ratio) for ratio in (0, 0.5, 0.75)]
    assert found == [197, 99, 50]  # the class token among them


def test_an_ablations_batch_takes_the_same_memory_at_every_mask_ratio():
    for ratio, batch in ((0, 16_384), (0.5, 32_768), (0.75, 65_536)):
        [phase] = recipe.load("flip_table1")(mask_ratio=ratio).phases
        assert phase.batch_size == batch
        assert phase.pairs == 6.4 * 400_000_000
        assert phase.schedule.peak == pytest.approx(4e-6 * batch / 256)
    tuned = recipe.load("flip_table1")(tuning=True).phases[1]
    assert tuned.pairs == 0.32 * 400_000_000


def test_ablations_mask_words(runs):
    model = recipe.load("flip_table1")(mask_ratio=0.75, text_masker="random").model
    assert model.kept_tokens == 16
    assert model.kept_patches == 49
    assert runs["flip_table1"].model.kept_tokens == 32


def test_an_ablation_reconstructs_pixels():
    run = recipe.load("flip_table1")(reconstruction=True)
    assert isinstance(run.model.reconstruction, flipkit.MAEDecoder)
    assert run.model.reconstruction.dtype_policy.name == run.model.dtype_policy.name
    plain, more = (
        planning.Towers(flipkit.scaled(r, "tiny").model).training(0.5)
        for r in (recipe.load("flip_table1")(), run)
    )
    assert more["image"] > 1.5 * plain["image"]
    assert more["text"] == plain["text"]


# L/14, Table 2


def test_l14_is_the_tuning_of_l16_with_smaller_patches(runs):
    run, [_, tuning] = recipe.load("flip_vitl14")(), runs["flip_vitl"].phases
    assert [phase.get_config() for phase in run.phases] == [tuning.get_config()]
    assert run.model.image.grid == (16, 16)
    assert run.init == "runs/flip_vitl/model.keras"
    assert recipe.load("flip_vitl14")(image_size=336).model.image.grid == (24, 24)


def test_l14_begins_with_an_l16s_weights(runs):
    first = flipkit.scaled(runs["flip_vitl"], "tiny").model
    run = recipe.load("flip_vitl14")(scale="tiny")
    sizes = {"model.image.image_size": 28, "model.image.patch_size": 7, "model.seed": 1}
    model = run.with_overrides(sizes).model
    for part in (first, model):
        part.build()
    initial.take_weights(model, first, "an L/16")
    assert model.image.patch_embed.kernel.shape == (3 * 7**2, 16)
    for ours, theirs in zip(model.weights, first.weights, strict=True):
        if ours is not model.image.patch_embed.kernel:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


# Table 10


@pytest.mark.parametrize(
    ("name", "dials", "expected"),  # of each phase: peak, warm-up steps, steps
    [
        ("flip_vitl", {}, [(1.024e-3, 781, 195_312), (1.024e-5, 390, 1_953)]),
        ("flip_vitb", {}, [(1.024e-3, 781, 195_312), (1.024e-5, 390, 1_953)]),
        ("flip_vith", {}, [(1.024e-3, 3_906, 195_312), (1.024e-5, 390, 1_953)]),
        ("flip_vitl", {"tuning": False}, [(1.024e-3, 781, 195_312)]),
        ("flip_vitl", {"pairs": 2.56e9}, [(1.024e-3, 781, 39_062), (1.024e-5, 390, 1_953)]),
        ("flip_vith", {"pairs": 25.6e9}, [(1.024e-3, 3_906, 390_625), (1.024e-5, 390, 1_953)]),
        ("clip_vitl", {}, [(5.12e-4, 1_562, 390_625)]),
        ("clip_vitb", {"batch_size": 65_536}, [(1.024e-3, 781, 195_312)]),
    ],
)
def test_schedules_are_those_of_table_10(name, dials, expected):
    run = recipe.make(recipe.load(name), {key: str(value) for key, value in dials.items()})
    assert len(run.phases) == len(expected)
    for phase, (peak, warmup, steps) in zip(run.phases, expected, strict=True):
        assert phase.schedule.peak == pytest.approx(peak)
        assert phase.schedule.warmup // phase.batch_size == warmup
        assert phase.steps == steps
        phase.schedule.bind(phase.batch_size, phase.samples)  # the warm-up fits


def test_optimizer_and_data_are_the_papers(runs):
    for run in runs.values():
        optimizer = run.optimizer
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.decay) == (0.9, 0.95, 0.2)
        assert optimizer.epsilon == 1e-8
        assert (run.feed.crop, run.feed.flip) == ((0.5, 1.0), True)
        assert run.model.preprocessing.get_config() == flipkit.Preprocessing().get_config()


def test_tuning_sees_every_patch_with_fresh_moments(runs):
    pretraining, tuning = runs["flip_vitl"].phases
    assert runs["flip_vitl"].model.kept_patches == 98
    assert pretraining.mask_ratio is None  # the model's own
    assert (tuning.mask_ratio, tuning.optimizer) == (0.0, "fresh")
    assert tuning.pairs == 128_000_000


def test_clip_differs_from_flip_in_mask_tuning_and_batch_alone(runs):
    for size in ("b", "l"):
        flip, clip = (runs[f"{name}_vit{size}"].get_config() for name in ("flip", "clip"))
        assert clip["model"]["config"].pop("mask_ratio") == 0
        assert flip["model"]["config"].pop("mask_ratio") == 0.5
        flip, clip = (
            {key: value for key, value in run.items() if key != "phases"} for run in (flip, clip)
        )
        assert flip == clip


def test_a_shortened_run_has_no_tuning_and_ends_at_zero():
    settings = {"batch_size": "8", "pairs": "16", "image_size": "32"}
    [phase] = recipe.make(recipe.load("flip_vitl"), settings).phases
    schedule = phase.schedule.bind(phase.batch_size, phase.samples)
    assert phase.steps == 2
    assert float(schedule(2)) == 0
    assert schedule.peak == pytest.approx(4e-6 * 8 / 256)


# The official code


@pytest.mark.parametrize(
    ("name", "dials", "golden"),
    [
        ("flip_vitl", {}, ("L16", "L16_unmasked_tuning")),
        ("flip_vith", {}, ("H14", "L16_unmasked_tuning")),
        ("flip_vitl", {"data_set": "laion2b", "pairs": 25_600_000_000}, ("L16_laion2b", None)),
    ],
)
def test_official_code_schedules_are_the_recorded_ones(name, dials, golden):
    recorded = json.loads(reference("schedules/learning_rates.json").read_text())
    for phase, case in zip(official(name, **dials).phases, golden, strict=True):
        if case is None:
            continue
        case, schedule = recorded[case], phase.schedule
        assert phase.steps == case["total_steps"]
        assert schedule.warmup == case["warmup_steps"] * phase.batch_size
        assert schedule.peak == pytest.approx(case["peak_lr"], rel=1e-12)
        steps = np.array(case["steps"], "float64")
        found = closed_form(steps * phase.batch_size, schedule, phase.samples)
        np.testing.assert_allclose(found, case["lr_f64"], rtol=0, atol=1e-12)
        bound = schedule.bind(phase.batch_size, phase.samples)
        found = [float(bound(step)) for step in case["steps"]]
        atol = 1e-6 * case["peak_lr"]
        np.testing.assert_allclose(found, case["lr_f64"], rtol=1e-5, atol=atol)


def closed_form(samples, schedule, total):
    """A warm-up from 0 and half a cosine to 0, in float64."""
    progress = np.clip((samples - schedule.warmup) / (total - schedule.warmup), 0, 1)
    falling = schedule.peak * (1 + np.cos(np.pi * progress)) / 2
    rising = schedule.peak * samples / schedule.warmup
    return np.where(samples < schedule.warmup, rising, falling)


def reference(name):
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no reference in {path}")
    return path


def test_official_code_epochs_are_shorter_than_the_papers():
    [pretraining, tuning] = official("flip_vitl").phases
    assert pretraining.samples / 1e9 == pytest.approx(12.45, abs=0.005)
    assert tuning.samples / 1e6 == pytest.approx(124.5, abs=0.05)
    assert pretraining.schedule.warmup / 1e6 == pytest.approx(49.8, abs=0.05)


@pytest.mark.parametrize("data_set", ["laion400m", "laion2b"])
def test_the_base_rate_of_laion_2b_is_the_codes_own(data_set):
    rates = [
        run.phases[0].schedule.peak
        for run in (recipe.load("flip_vith")(), official("flip_vith", data_set=data_set))
    ]
    assert rates == pytest.approx([1.024e-3, 1.024e-3 if data_set == "laion400m" else 5.12e-4])


def test_official_code_computes_in_float32_with_a_row_for_unknown_words():
    model = official("flip_vitb").model
    assert model.text.vocab == 30_523
    assert {model.dtype_policy.name, model.image.dtype_policy.name} == {"float32"}


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigurationError, match="'laion400m' or 'laion2b'"):
        official("flip_vitb", data_set="laion")


# At tiny scale


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_two_steps_a_phase_at_tiny_scale(name, tmp_path, monkeypatch):
    # A picture takes longer than the steps.
    monkeypatch.setattr("flipkit.records.drawing.pyplot", lambda: None)
    whole, run = recipe.load(name)(), recipe.make(recipe.load(name), {"scale": "tiny"})
    assert len(run.phases) == len(whole.phases)
    assert run.steps == 2 * len(run.phases)
    run.start(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {*range(len(run.phases))}
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["learning_rate"] < max(row["learning_rate"] for row in rows)


def test_tiny_is_the_same_structure(runs):
    run = flipkit.scaled(runs["flip_vitl"], "tiny")
    whole, tiny = runs["flip_vitl"].paths(), run.paths()
    lost = whole.keys() - tiny.keys()
    assert lost == {path for path in whole if path.startswith("data.")}
    changed = {path for path in whole.keys() & tiny.keys() if whole[path] != tiny[path]}
    kept = {
        "model.mask_ratio",
        "model.image.remat",
        "phases.1.mask_ratio",
        "model.image.pool",
        "seed",
    }
    assert not changed & kept
    assert weights(shape_only(run.model)) < 20_000


def test_openais_towers_come_with_their_preprocessing_and_tokenizer():
    whole, tiny = (
        recipe.load("clip_vitb")(towers="openai", scale=scale).model for scale in ("full", "tiny")
    )
    assert (whole.text.vocab, whole.text.length) == (49_408, 77)
    assert (whole.preprocessing.mean, type(whole.tokenizer)) == ("clip", flipkit.ClipBPE)
    assert (tiny.preprocessing.mean, type(tiny.tokenizer)) == ("clip", flipkit.WordPiece)
    assert weights(shape_only(tiny)) < 20_000


def test_full_scale_is_the_run_itself_and_another_is_refused(runs):
    run = runs["flip_vitb"]
    assert flipkit.scaled(run, "full") is run
    with pytest.raises(ConfigurationError, match="'full' or 'tiny'"):
        flipkit.scaled(run, "small")
