"""Planning: FLOPs counted from traced shapes against closed forms, and the command line."""

import contextlib
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import keras
import pytest
from keras import ops

import flipkit
from flipkit import planning, recipe
from flipkit.commands import shell
from flipkit.errors import ConfigurationError
from flipkit.planning import Towers


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def blocks(dim, depth, tokens, hidden=None):
    """Forward FLOPs of transformer blocks: 12 dim^2 multiply-adds a token, and attention's 2 n^2 dim."""
    hidden = hidden or 4 * dim
    products = 4 * dim * dim + 2 * dim * hidden
    return depth * (2 * products * tokens + 4 * tokens**2 * dim)


# Counting


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (jnp.matmul, [shape(3, 5), shape(5, 7)], 2 * 3 * 5 * 7),
        (jnp.matmul, [shape(4, 3, 5), shape(4, 5, 7)], 4 * 2 * 3 * 5 * 7),
        (lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), [shape(2, 5, 3, 4)] * 2, 2 * 2 * 3 * 25 * 4),
        (lambda a: jnp.tanh(a) + a * 3, [shape(5, 5)], 0),
        (jax.jit(jnp.matmul), [shape(3, 5), shape(5, 7)], 2 * 3 * 5 * 7),
        (jax.checkpoint(lambda a: a @ a), [shape(5, 5)], 2 * 5**3),
        (lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=6)[0], [shape(5, 5)], 6 * 250),
        (lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a), [shape(5, 5)], 250),
        (lambda a: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x + 1, a), [shape(5, 5)], 0),
        (jax.grad(lambda w, x: (x @ w).sum()), [shape(5, 7), shape(3, 5)], 2 * 2 * 3 * 5 * 7),
    ],
)  # fmt: skip
def test_products_are_counted_wherever_they_are(function, inputs, expected):
    assert planning.flops(function, *inputs) == expected


def convolution(kernel, image, stride=1, groups=1):
    form = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, (stride,) * 2, "VALID", dimension_numbers=form, feature_group_count=groups
    )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (4, 1), (1, 4)])
def test_convolutions_are_counted_and_so_are_their_gradients(stride, groups):
    kernel, image = shape(4, 4, 8 // groups, 12), shape(2, 32, 32, 8)
    outputs = 2 * ((32 - 4) // stride + 1) ** 2 * 12

    def forward(kernel, image):
        return convolution(kernel, image, stride, groups)

    def summed(kernel, image):
        return forward(kernel, image).sum()

    expected = 2 * outputs * 4 * 4 * 8 // groups
    assert planning.flops(forward, kernel, image) == expected
    both = planning.flops(jax.grad(summed, argnums=(0, 1)), kernel, image)
    assert both == pytest.approx(3 * expected, rel=0.35 if stride == 1 else 1e-9)  # borders


def test_a_loop_of_unknown_length_is_refused_in_words():
    def function(a):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, a)

    with pytest.raises(ConfigurationError, match="in a 'while'"):
        planning.flops(function, shape(5, 5))


# Towers


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("token", [True, False])
def test_a_towers_flops_are_the_closed_form(tiny, ratio, token):
    image = {"dim": 32, "depth": 3, "heads": 4, "class_token": token}
    towers = Towers(tiny(image=image, text={"dim": 24, "depth": 2}))
    kept = round(16 * (1 - ratio))
    assert towers.tokens("image", ratio) == kept + token
    embedding = 2 * 48 * 32
    assert towers.forward("image", ratio) == blocks(32, 3, kept + token) + kept * embedding
    assert towers.forward("text") == blocks(24, 2, 6)
    row = towers.masking(ratio)
    whole = blocks(32, 3, 16 + token) + 16 * embedding
    text = blocks(24, 2, 6)
    assert row["ratio"] == pytest.approx((towers.forward("image", ratio) + text) / (whole + text))
    official = blocks(32, 3, kept + token) + 16 * embedding  # embeds what it drops, too
    assert row["official_image_ratio"] == pytest.approx(official / whole)
    assert row["official_ratio"] == pytest.approx((official + text) / (whole + text))


def test_training_is_three_times_the_forward_pass_but_for_the_pixels_gradient(tiny):
    towers = Towers(tiny())
    kept, embedding, projection = 8, 2 * 48 * 16, 2 * 16 * 8
    found = towers.training(ratio=0.5)
    assert found["image"] == 3 * (blocks(16, 1, kept + 1) + projection) + 2 * kept * embedding
    assert found["text"] == 3 * (blocks(16, 1, 6) + projection)


def test_training_counts_what_remat_computes_again(tiny):
    plain, again = (Towers(tiny(image={"depth": 4, "remat": r})) for r in ("none", "block"))
    assert plain.forward("image", 0.5) == again.forward("image", 0.5)
    ratio = again.training(0.5)["image"] / plain.training(0.5)["image"]
    assert 1.15 < ratio <= 4 / 3


def test_a_frozen_tower_costs_its_forward_pass(tiny):
    towers = Towers(tiny(frozen=["image"], mask_ratio=0.0))
    projection = 2 * 16 * 8
    assert towers.training()["image"] == towers.forward("image") + 2 * projection
    assert towers.summary("image") == Towers(tiny()).summary("image")


def test_masked_words_are_not_counted(tiny):
    towers = Towers(tiny(text_masker="random", text_mask_ratio=0.5))
    assert towers.tokens("text", 0.5) == 3
    assert towers.forward("text", 0.5) == blocks(16, 1, 3)


def test_another_encoder_is_counted_without_telling_how(tiny):
    @flipkit.registry.register
    class Convolutional(keras.layers.Layer):
        """Patches by a convolution, and no grid."""

        dim, image_size = 8, 16

        def build(self, input_shape=None):
            self.embed = keras.layers.Conv2D(8, 4, 4, name="embed")
            self.embed.build((None, 16, 16, 3))

        def call(self, x, training=False):
            return ops.mean(self.embed(x), axis=(1, 2))

    towers = Towers(tiny(image=Convolutional(), mask_ratio=0.0))
    assert towers.forward("image") == 16 * 2 * 48 * 8
    assert towers.tokens("image", 0.0) is None
    assert towers.masking(0.0)["ratio"] == 1


def test_planning_leaves_the_model_as_it_was(tiny):
    model = tiny(mask_ratio=0.25)
    towers = Towers(model)
    towers.masking(0.75)
    assert model.mask_ratio == 0.25
    assert not model.built
    assert model.image.blocks[0].attention.impl == "auto"


# Runs


@pytest.fixture(scope="module")
def vitl(tmp_path_factory):
    """The paper's main run, planned by the command line: (its numbers, what was printed)."""
    out = tmp_path_factory.mktemp("plans") / "new" / "vitl.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command("flip_vitl", "--json", out) == 0
    return json.loads(out.read_text()), printed.getvalue()


def test_doubling_the_depth_doubles_the_blocks(vitl):
    run = recipe.load("flip_vitl")().with_override("model.image.depth", 48)
    towers, [before, *_] = Towers(run.model), vitl[0]["masking"]
    dim, pixels, norm = 1024, 3 * 16**2, 2 * 1024
    outside = dim + (pixels + 1) * dim + norm  # class token, patch embedding, final norm
    once = vitl[0]["towers"]["image"]["parameters"] - outside
    assert towers.summary("image")["parameters"] - outside == 2 * once
    assert once == 24 * (12 * dim**2 + 13 * dim)
    after, embedding = towers.masking(0.0), 2 * pixels * dim * 196
    costs = [row["flops_by_tower"]["image"] - embedding for row in (before, after)]
    assert costs[1] == 2 * costs[0]
    assert after["flops_by_tower"]["text"] == before["flops_by_tower"]["text"]
    assert towers.summary("text") == vitl[0]["towers"]["text"]


def test_the_plan_of_a_run_follows_its_phases(vitl):
    vitl, _ = vitl
    masked, whole = vitl["phases"]
    assert [p["mask_ratio"] for p in (masked, whole)] == [0.5, 0.0]
    assert [p["tokens"]["image"] for p in (masked, whole)] == [99, 197]
    assert [p["tokens"]["text"] for p in (masked, whole)] == [32, 32]
    assert vitl["flops"] == masked["flops"] + whole["flops"]
    assert masked["flops"] == masked["samples"] * sum(masked["training_flops_per_pair"].values())
    assert masked["epochs"] is None
    assert "set data.path" in vitl["data"]["unknown"]


def test_epochs_are_told_where_the_data_is_there():
    run = recipe.make(recipe.load("flip_vitb"), {"scale": "tiny", "data.size": "128"})
    found = planning.plan(run)
    assert found["data"] == {"samples": 128, "unknown": None}
    assert [p["epochs"] for p in found["phases"]] == [0.125, 0.125]


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_can_be_planned(name):
    check(recipe.load(name)(scale="tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_can_be_planned_at_its_full_size(name):
    check(recipe.load(name)())


def check(run):
    found = planning.plan(run)
    assert found == json.loads(json.dumps(found))
    assert found["masking"][0]["ratio"] == 1
    assert found["flops"] > 0
    assert found["parameters"] > sum(tower["parameters"] for tower in found["towers"].values())


# The command line


def command(*arguments):
    """Runs the command line in this process; returns its exit code."""
    return shell.call("plan", [*map(str, arguments)])


def test_the_command_prints_the_papers_figures(vitl):
    for figure in (
        "303.3 M", "109.1 M", "0.5175", "0.2817", " 0.496 ", " 0.250 ", "4.45%", "0.001024",
        "781", "195,312", "1.024e-05", "390", "1,953", "65,536",
    ):  # fmt: skip
        assert figure in vitl[1], figure


def test_the_command_takes_settings_as_run_does(capsys):
    settings = ["batch_size=4096", "pairs=8192", "model.mask_ratio=0.9", "model.image.depth=1"]
    assert command("flip_vitb", *settings, "tuning=false") == 0
    printed = capsys.readouterr().out
    assert "phase 1" not in printed
    for told in ("\n0.9 ", " 8,192\n", " 4,096\n", " 2\n", " 21 "):
        assert told in printed, told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Expected a recipe: flipkit plan RECIPE"),
        (["flip_vitll"], "Did you mean 'flip_vitl'"),
        (["flip_vitl", "model.image.deph=48"], "Did you mean 'model.image.depth'"),
        (["flip_vitl", "depth"], "Expected name=value"),
    ],
)
def test_mistakes_are_answered_without_a_traceback(capsys, arguments, told):
    assert command(*arguments) == 2
    assert told in capsys.readouterr().err


# Not getrusage's peak: that of a process begins with the memory of the one that started it.
HUGE = """
import pathlib, re
from flipkit import planning, recipe
towers = planning.Towers(recipe.load("flip_vith")().model)
towers.parameters, towers.masking(0.5)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="only Linux reports the peak"
)
def test_planning_the_largest_model_takes_a_fraction_of_its_memory(fresh):
    peak = int(fresh(HUGE, JAX_PLATFORMS="cpu").split()[-1])  # MiB
    assert peak < 966_723_840 * 4 / 2**20 / 3  # of its float32 weights
