"""Recipes: finding them, setting their dials, changing their runs by path; the shipped ones."""

import json
import re

import pytest

import flipkit
from flipkit import plugins, recipe, settings
from flipkit.encoders import shape_only, weights
from flipkit.errors import ConfigurationError, FlipkitError, UnknownName

TINY = '''"""A tiny run.

More of it.
"""

import flipkit


def recipe(pairs=100, batch_size=10, mask_ratio=0.5, rate=1e-3, causal=False, block=None):
    """Says what it is made of."""
    image = flipkit.ViT(image_size=16, patch_size=4, dim=16, depth=1, heads=1)
    text = flipkit.TextTransformer(vocab=259, length=8, dim=16, depth=1, heads=1, causal=causal)
    return flipkit.Run(
        flipkit.FLIP(image, text, mask_ratio=mask_ratio, dim=16, tokenizer="bytes"),
        data=flipkit.CaptionedShapes(size=64, image_size=32),
        feed=flipkit.Feed(captions=0.5),
        optimizer=flipkit.AdamW(weight_decay=0.1, no_decay=["bias"]),
        phases=[
            flipkit.Phase(pairs, batch_size, flipkit.WarmupCosine(rate, warmup=pairs // 10)),
            flipkit.Phase(2 * batch_size, batch_size, mask_ratio=0),
        ],
        evaluators={"shapes": flipkit.ZeroShot(flipkit.CaptionedShapes("test"))},
    )
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The path of a small recipe."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def function(tiny):
    return recipe.load(str(tiny))


@pytest.fixture(scope="module")
def run(function):
    return function()


def set_in(run, **settings):
    """`run` with overrides whose dots are written as `__`."""
    for path, value in settings.items():
        run = run.with_override(path.replace("__", "."), value)
    return run


# Finding


def test_recipe_is_found_by_its_path(function):
    assert function().phases[0].pairs == 100
    assert recipe.summary(function) == "A tiny run."


def test_recipe_is_found_by_its_shipped_name():
    assert {"flip_vitl", "flip_vitb", "clip_vitb", "flip_small", "flip_shapes"} <= {*recipe.names()}
    assert "ViT-L/16" in recipe.summary(recipe.load("flip_vitl"))


def test_recipe_can_come_from_a_plugin(tiny, function, monkeypatch):
    monkeypatch.setenv("FLIPKIT_PLUGINS", "")
    plugins.reset()

    class Plugin:
        @flipkit.hookimpl
        def flipkit_recipes(self):
            return {"from_file": str(tiny), "from_function": function}

    plugins.register(Plugin(), name="flipkit-more-recipes")
    try:
        assert {"from_file", "from_function"} <= {*recipe.names()}
        for name in ("from_file", "from_function"):
            assert recipe.load(name)().phases[0].pairs == 100
    finally:
        plugins.reset()


def test_recipe_imports_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_this_test.py").write_text("PAIRS = 7")
    path = tmp_path / "imports.py"
    path.write_text("from neighbour_of_this_test import PAIRS\ndef recipe(): return PAIRS")
    assert recipe.load(str(path))() == 7


def test_recorded_run_is_a_recipe(tmp_path, run):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(set_in(run, model__mask_ratio=0.25, seed=7).record("tiny")))
    again = recipe.load(str(path))()
    assert again.get_config() == set_in(run, model__mask_ratio=0.25, seed=7).get_config()
    changed = recipe.make(recipe.load(str(path)), {"phases.0.pairs": "50"})
    assert changed.phases[0].pairs == 50


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1]", '{"run": 3}', "{"])
def test_another_json_file_is_no_recorded_run(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"Expected the run\.json that a run wrote"):
        recipe.load(str(path))


@pytest.mark.parametrize(
    ("identifier", "nearest"),
    [
        ("flip_vitll", "flip_vitl"),
        ("FLIP_VITL", "flip_vitl"),
        ("clip-vitb", "clip_vitb"),
        ("nowhere/flip_smal.py", "flip_small"),
        ("somewhere/flip_shape", "flip_shapes"),
    ],
)
def test_unknown_recipe_answers_with_the_nearest_and_all(identifier, nearest):
    with pytest.raises(UnknownName, match=f"Did you mean '{nearest}'") as problem:
        recipe.load(identifier)
    assert all(name in str(problem.value) for name in recipe.names())


@pytest.mark.parametrize("typo", ["my_recip.py", "my_recipes.py", "my_recipe", "my_recip"])
def test_misspelt_file_answers_with_the_nearest_beside_it(tmp_path, monkeypatch, typo):
    (tmp_path / "my_recipe.py").write_text(TINY)
    (tmp_path / "other.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=r"Did you mean 'my_recipe\.py'"):
        recipe.load(typo)
    with pytest.raises(UnknownName, match=rf"Beside it: .*Did you mean '{tmp_path}/my_recipe\.py'"):
        recipe.load(str(tmp_path / typo))


def test_folder_of_a_run_answers_with_its_record(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnknownName, match=rf"whose recipe is '{tmp_path}/run\.json'"):
        recipe.load(str(tmp_path))


def test_file_in_no_folder_says_so(tmp_path):
    with pytest.raises(UnknownName, match=f"There is no folder {tmp_path}/absent"):
        recipe.load(str(tmp_path / "absent" / "tiny.py"))


def test_file_without_recipe_says_what_one_is(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("recipe = 3")
    with pytest.raises(ConfigurationError, match="has no function `recipe`"):
        recipe.load(str(path))


@pytest.mark.parametrize(
    ("code", "settings", "told"),
    [
        ("def recipe(): return 3", {}, r"Expected a recipe to return a flipkit\.Run\. Received: 3"),
        ("def recipe(path): return path", {}, "This recipe needs a value: path="),
        ("def recipe(size=3): return 'x' * size / 2", {"size": "2"}, "can't be made with size=2"),
    ],
)
def test_recipe_that_cant_be_made_says_why(tmp_path, code, settings, told):
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(ConfigurationError, match=told):
        recipe.make(recipe.load(str(path)), settings)


def test_a_mistake_inside_a_recipe_keeps_its_traceback(tmp_path):
    path = tmp_path / "mistaken.py"
    path.write_text("def recipe(): return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        recipe.make(recipe.load(str(path)), {})


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1e6", 1e6),
        ("65_536", 65536),
        ("True", True),
        ("false", False),
        ("none", None),
        ("null", None),
        ("(0.3, 1)", (0.3, 1)),
        ("['a', 'b']", ["a", "b"]),
        ("'quoted'", "quoted"),
        ("random", "random"),
        ("a/{00..41}.tar", "a/{00..41}.tar"),
        ("a=b", "a=b"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_text_is_a_literal_or_itself(text, value):
    assert settings.parse(text) == value
    assert type(settings.parse(text)) is type(value)


def test_settings_are_split_at_the_first_equals_sign():
    assert settings.split_settings(["a=1", "b.c=x=y", "d="]) == {"a": "1", "b.c": "x=y", "d": ""}


@pytest.mark.parametrize("argument", ["batch_size", "=3", "--batch_size"])
def test_setting_without_name_or_value_is_refused(argument):
    with pytest.raises(ConfigurationError, match="Expected name=value"):
        settings.split_settings([argument])


# Dials


def test_dials_are_the_recipes_arguments(function):
    assert recipe.dials(function)["pairs"] == 100
    assert [*recipe.dials(function)] == [
        "pairs", "batch_size", "mask_ratio", "rate", "causal", "block",
    ]  # fmt: skip


def test_what_derives_from_a_dial_follows(function):
    run = recipe.make(function, {"pairs": "1e3", "batch_size": "20"})
    assert run.phases[0].pairs == 1000
    assert run.phases[0].schedule.warmup == 100
    assert run.phases[1].pairs == 40


def test_dials_and_paths_go_together(function):
    run = recipe.make(function, {"model.masker": "none", "pairs": "50", "feed.crop": "None"})
    assert run.model.masker is None
    assert run.feed.crop is None
    assert run.phases[0].pairs == 50


@pytest.mark.parametrize(
    "setting",
    ["pairs=many", "batch_size=true", "rate=[1]", "causal=1", "causal=yes", "batch_size=0.5",
     "pairs=0", "mask_ratio=1", "pairs=1e400", "mask_ratio=nan"],
)  # fmt: skip
def test_dial_of_another_type_or_range_is_refused(function, setting):
    with pytest.raises(ConfigurationError) as problem:
        recipe.make(function, settings.split_settings([setting]))
    assert setting.split("=")[0] in str(problem.value)


def test_tiny_run_has_as_many_pairs_as_it_is_told():
    function = recipe.load("flip_shapes")  # whose own batches are longer than these phases
    tiny = recipe.make(function, {"scale": "tiny", "pairs": "64"})
    assert [(phase.pairs, phase.batch_size) for phase in tiny.phases] == [(32, 8), (32, 8)]
    assert tiny.phases[0].schedule.warmup == 16
    tiny = recipe.make(function, {"scale": "tiny", "batch_size": "4"})
    assert [(phase.pairs, phase.batch_size) for phase in tiny.phases] == [(16, 4), (16, 4)]


# Overrides


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("seed", 3, lambda run: run.seed),
        ("log_every", 5.0, lambda run: run.log_every),
        ("distribution", "data_parallel", lambda run: run.distribution),
        ("model.mask_ratio", 0.75, lambda run: run.model.mask_ratio),
        ("model.image.depth", 2, lambda run: len(run.model.image.blocks)),
        ("model.image.dtype", "bfloat16", lambda run: run.model.image.dtype_policy.name),
        ("model.text.pool", "mean", lambda run: run.model.text.pool),
        ("feed.captions", "random", lambda run: run.feed.captions),
        ("feed.captions", 0.3, lambda run: run.feed.captions),
        ("feed.crop", (0.2, 0.9), lambda run: tuple(run.feed.crop)),
        ("phases.0.pairs", 30, lambda run: run.phases[0].pairs),
        ("phases.1.mask_ratio", 0.3, lambda run: run.phases[1].mask_ratio),
        ("phases.1.mask_ratio", None, lambda run: run.phases[1].mask_ratio),
        ("phases.-1.optimizer", "fresh", lambda run: run.phases[1].optimizer),
        ("phases.0.schedule.peak", 2, lambda run: run.phases[0].schedule.peak),
        ("optimizer.weight_decay", 0, lambda run: run.optimizer.decay),
        ("optimizer.global_clipnorm", 1.0, lambda run: run.optimizer.global_clipnorm),
        ("optimizer.no_decay", ["bias", "position"], lambda run: run.optimizer.no_decay),
        ("data.size", 32, lambda run: len(run.data)),
        ("evaluators.shapes.data.size", 9, lambda run: len(run.evaluators["shapes"].data)),
        ("evaluators.shapes.templates", "openai_7", lambda run: run.evaluators["shapes"].templates),
        ("evaluators", {}, lambda run: run.evaluators),
    ],
)  # fmt: skip
def test_anything_can_be_set_by_its_path(run, path, value, found):
    before = json.dumps(run.get_config())
    assert found(run.with_override(path, value)) == value
    assert json.dumps(run.get_config()) == before


def test_components_can_be_set_by_name(run):
    assert isinstance(set_in(run, data="captioned_shapes").data, flipkit.CaptionedShapes)
    assert len(set_in(run, data="captioned_shapes").data) == 100_000
    assert set_in(run, data="a/*.tar").data.path == "a/*.tar"
    assert type(set_in(run, optimizer="sgd").optimizer).__name__ == "SGD"
    assert set_in(run, model__masker=None).model.masker is None
    assert isinstance(set_in(run, model__text_masker="random").model.text_masker, flipkit.Masker)
    assert isinstance(set_in(run, model__tokenizer="wordpiece").model.tokenizer, flipkit.WordPiece)


def test_what_was_set_by_name_can_be_set_further(run):
    changed = set_in(run, data="captioned_shapes", data__size=5, data__split="test")
    assert len(changed.data) == 5
    assert changed.data.split == "test"


def test_overrides_are_judged_together(run, function):
    wide = recipe.make(function, {"model.image.dim": "36", "model.image.heads": "9"})
    assert (wide.model.image.dim, wide.model.image.heads) == (36, 9)
    several = {"model.masker": None, "model.image": "vit", "model.image.depth": 1, "seed": 2}
    changed = run.with_overrides(
        {**several, "model.masker": "random", "model.masker.trainable": False}
    )
    assert (len(changed.model.image.blocks), changed.model.image.dim) == (1, 768)
    assert changed.model.masker.trainable is False
    with pytest.raises(ConfigurationError, match=r"Can't set model\.image\.dim=36, model.*heads=8"):
        run.with_overrides({"model.image.dim": 36, "model.image.heads": 8, "seed": 3})


def test_every_listed_path_can_be_set_to_the_value_it_has(run):
    for path, value in run.paths().items():
        if path.endswith(("name", "dtype")) or not isinstance(value, (int, float, bool)):
            continue
        assert run.with_override(path, value).get_config() == run.get_config(), path


def mistyped(word):
    """Words one edit from `word`: a letter left out, doubled, swapped, wrong."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i] + word[i:]
        yield word[:i] + "q" + word[i + 1 :]
        yield word[:i] + word[i : i + 2][::-1] + word[i + 2 :]


@pytest.mark.parametrize(
    "path",
    ["optimizer", "distribution", "checkpoint_every", "model.mask_ratio", "model.masker",
     "model.image.patch_size", "feed.workers", "feed.captions", "phases.0.schedule.warmup",
     "optimizer.weight_decay"],
)  # fmt: skip
def test_every_one_letter_typo_names_the_right_key(run, path):
    head, _, key = path.rpartition(".")
    for typo in {*mistyped(key)} - {key}:
        with pytest.raises(UnknownName, match=f"Did you mean '{path}'") as problem:
            run.with_override(f"{head}.{typo}".lstrip("."), 1)
        assert typo in str(problem.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("masker", "model.masker"),
        ("maskr", "model.masker"),
        ("patch_size", "model.image.patch_size"),
        ("model.patch_size", "model.image.patch_size"),
        ("image.patch_size", "model.image.patch_size"),
        ("modell.mask_ratio", "model.mask_ratio"),
        ("model.mask_rato", "model.mask_ratio"),
        ("model.text.dept", "model.text.depth"),
        ("phases.0.peak", "phases.0.schedule.peak"),
        ("phases.2.batch_size", "phases.1.batch_size"),
        ("weight_decay", "optimizer.weight_decay"),
        ("mask_rato", "mask_ratio"),  # an argument of the recipe
    ],
)
def test_hint_is_a_whole_path_that_can_be_set(function, run, typed, meant):
    with pytest.raises(UnknownName, match=re.escape(f"Did you mean {meant!r}")):
        recipe.make(function, {typed: "1"})
    assert meant in {**recipe.dials(function), **run.paths()}


def test_every_one_letter_typo_names_the_right_dial(function):
    for typo in {*mistyped("batch_size")} - {"batch_size"}:
        with pytest.raises(UnknownName, match="Did you mean 'batch_size'"):
            recipe.make(function, {typo: "3"})


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("model.masker", "randm", "Did you mean 'random'"),
        ("model.image", "vitt", "Did you mean 'vit'"),
        ("model.text", "text_transfomer", "Did you mean 'text_transformer'"),
        ("model.tokenizer", "word_piece", "Did you mean 'wordpiece'"),
        ("model.preprocessing", "clp", "Did you mean 'clip'"),
        ("data", "captioned_shape", "Did you mean 'captioned_shapes'"),
        ("optimizer", "adamv", "Did you mean 'adamw'"),
        ("loss", "contrastve", "Did you mean 'contrastive'"),
        ("phases.0.schedule", "warmup_cosin", "Did you mean 'warmup_cosine'"),
        ("distribution", "data_paralel", "Did you mean 'data_parallel'"),
        ("model.image.pool", "men", "Did you mean 'mean'"),
        ("model.image.activation", "gelutanh", "Did you mean 'gelu_tanh'"),
        ("data.split", "trian", "Did you mean 'train'"),
    ],
)
def test_unknown_name_of_a_component_answers_with_the_nearest(run, path, value, told):
    with pytest.raises(FlipkitError, match=told) as problem:
        run.with_override(path, value)
    assert "deserializ" not in str(problem.value)
    assert len(str(problem.value)) < 400


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("seed", "three", "Expected a number, such as 0"),
        ("model.mask_ratio", "half", "Expected a number"),
        ("model.image.depth", True, "Expected a number, such as 1"),
        ("model.image.depth", 1.5, "depth"),
        ("model.image.depth", "deep", "Expected a number"),
        ("model.image.class_token", 1, "Expected true or false, such as True"),
        ("phases", 3, "Expected a list"),
        ("phases", "abc", "Expected a Phase"),
        ("evaluators", 3, "Expected a dict"),
        ("feed", "fast", "Expected a Feed"),
        ("model", "flop", "None of the models is called 'flop'. Did you mean 'flip'"),
        ("optimizer.no_decay", 3, "Expected a list"),
        ("feed.crop", 0.5, "Expected a list"),
        ("phases.0.mask_ratio", "half", "mask_ratio='half'"),
        ("phases.2.pairs", 3, "Known: 0, 1"),
        ("phases.first.pairs", 3, "Known: 0, 1"),
        ("model.mask_ratio.deep", 3, "Unknown: 'model.mask_ratio.deep'"),
        ("model.text_masker.block", 3, "Unknown: 'model.text_masker.block'"),
        ("model..dim", 3, "Unknown"),
        ("model.", 3, "Unknown"),
    ],
)
def test_wrong_types_and_places_are_refused_in_words(run, path, value, told):
    with pytest.raises(ConfigurationError, match=told) as problem:
        run.with_override(path, value)
    assert len(str(problem.value)) < 700


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.mask_ratio", 1.5), ("model.mask_ratio", 1), ("model.mask_ratio", -0.1),
        ("phases.0.mask_ratio", 1.0), ("phases.0.text_mask_ratio", -1),
        ("model.image.patch_size", 5), ("model.image.image_size", 17),
        ("model.image.patch_size", 0), ("model.image.heads", 0), ("model.image.heads", 3),
        ("phases.0.pairs", 5), ("phases.0.batch_size", 0), ("phases.0.batch_size", 101),
        ("phases.0.optimizer", "new"),
        ("log_every", 0), ("checkpoint_every", -1), ("evaluate_every", 1.5),
        ("feed.crop", (0.9, 0.5)), ("feed.threads", 0), ("data.size", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_naming_them(run, path, value):
    with pytest.raises(ConfigurationError) as problem:
        run.with_override(path, value)
    assert path.rpartition(".")[2] in str(problem.value)
    assert str(value) in str(problem.value)
    assert len(str(problem.value)) < 400


# The shipped recipes


@pytest.mark.parametrize("name", recipe.names())
def test_shipped_recipe_builds_and_can_be_written_down(name):
    run = recipe.load(name)()
    model = shape_only(run.model)
    assert weights(model) > 0
    assert all(variable._value is None for variable in model.variables)  # nothing is allocated
    assert run.steps > 0
    for phase in run.phases:
        phase.schedule.bind(phase.batch_size, phase.samples)
    again = type(run).from_config(json.loads(json.dumps(run.get_config())))
    assert again.get_config() == run.get_config()
    assert recipe.summary(recipe.load(name)).endswith((".", ")."))
    assert f"flipkit run {name}" in recipe.load(name).__globals__["__doc__"]
