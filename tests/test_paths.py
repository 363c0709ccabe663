import pytest

from flipkit import paths
from flipkit.errors import ConfigurationError

PATHS = [
    "logit_scale",
    "image/class_token",
    "image/block_00/mlp/up/bias",
    "image/block_00/mlp/up/kernel",
    "image/block_11/mlp_norm/scale",
    "text/block_00/mlp/up/kernel",
    "text/position",
]


def test_canonical_leaves_out_the_models_own_name():
    assert paths.canonical("flip/image/class_token") == "image/class_token"
    assert paths.canonical("my_clip/logit_scale") == "logit_scale"
    assert paths.canonical("kernel") == "kernel"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("bias", {"image/block_00/mlp/up/bias"}),
        ("scale", {"image/block_11/mlp_norm/scale"}),  # not logit_scale
        ("mlp/up", {p for p in PATHS if "mlp/up" in p}),
        ("image/block_*", {p for p in PATHS if p.startswith("image/block_")}),
        ("block_0?", {p for p in PATHS if "block_00" in p}),
        ("/image/class_token/", {"image/class_token"}),
        ("*", set(PATHS)),
        ("image/kernel", set()),  # parts must be neighbours
        ("mlp", {p for p in PATHS if "/mlp/" in p}),  # whole parts: not mlp_norm
        ("a/b/c/d/e/f/g", set()),  # more parts than any path has
    ],
)
def test_a_pattern_names_whole_neighbouring_parts(pattern, expected):
    assert {path for path in PATHS if paths.matches(pattern, path)} == expected


def test_a_star_stays_inside_its_part():
    assert not paths.matches("image/*/kernel", "image/block_00/mlp/kernel")
    assert paths.matches("image/*/kernel", "image/patch_embed/kernel")


def test_patterns_are_case_sensitive_on_every_system():
    assert not paths.matches("Bias", "text/bias")


def test_select_is_the_union_of_what_its_patterns_match():
    found = paths.select(["bias", "position"], PATHS, role="no_decay")
    assert found == {"image/block_00/mlp/up/bias", "text/position"}
    assert paths.select([], PATHS, role="no_decay") == set()


def test_select_takes_an_iterator():
    assert paths.select(["bias", "position"], iter(PATHS), role="no_decay")


def test_a_pattern_of_several_parts_is_refused_with_the_nearest_neighbours():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'text/position'"):
        paths.select(["text/postion/*"], PATHS, role="no_decay")


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_part():
    with pytest.raises(ConfigurationError, match=r"no_decay.*'postion'.*'position'"):
        paths.select(["bias", "postion"], PATHS, role="no_decay")
