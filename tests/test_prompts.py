import hashlib
import json
import pathlib

import pytest

from flipkit import errors
from flipkit.evaluation import prompts

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "schedules"


def test_templates_are_those_of_openai_and_flip():
    if not GOLDEN.exists():
        pytest.skip(f"no reference fingerprints in {GOLDEN}")
    lists = json.loads((GOLDEN / "zero_shot_lists.json").read_text())["flip"]
    names = {"name": "none", "openai_7": "short", "openai_80": "full"}
    for name, golden in names.items():
        rendered = "\n".join(template.format("{c}") for template in prompts.get(name))
        expected = lists[f"templates_{golden}"]
        assert len(prompts.get(name)) == expected["count"]
        assert hashlib.sha256(rendered.encode()).hexdigest() == expected["sha256"]


def test_every_template_takes_one_class_name():
    for templates in prompts.TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        for template in templates:
            assert template.count("{}") == 1
            assert "owl" in template.format("owl")


def test_own_templates_are_taken_as_they_are():
    assert prompts.get(["a map of {}.", "{}"]) == ("a map of {}.", "{}")


def test_unknown_name_answers_with_the_nearest():
    with pytest.raises(errors.UnknownName, match="Did you mean 'openai_80'"):
        prompts.get("openai80")


@pytest.mark.parametrize(
    "templates",
    [
        [],
        None,
        [3],
        ["a photo"],
        ["{}", "a photo of a {name}"],
        ["a {} in {place}"],
        ["{} {}"],
        ["{} 100% {"],
        ["{!z}{}"],
        ["{:>9}"],
    ],
)
def test_templates_without_one_place_for_the_name_are_refused(templates):
    with pytest.raises(errors.ConfigurationError, match="Expected templates with one place"):
        prompts.get(templates)


def test_a_brace_of_the_text_itself_is_written_twice():
    (template,) = prompts.get(["{{}} {}"])
    assert template.format("owl") == "{} owl"
