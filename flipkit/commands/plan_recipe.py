"""`flipkit plan RECIPE [name=value ...]`: prints what a run will cost, without starting it.

RECIPE and name=value are those of `flipkit run`. Prints parameters, tokens and FLOPs per pair, what
masking saves, and each phase's steps and learning rate. It computes them from the model's shapes,
without weights, an accelerator or data.

    flipkit plan flip_vitl --topology v3:8x16
    flipkit plan flip_vitb --topology v5e:1x1 --microbatch 0,256 --largest batch_size=2048

With --topology it compiles the run's own step for devices that need not be there: TPUs (v2, v3, v4, v5e,
v5p, v6e, by their chips: v5e:16x16), or CPU devices (cpu:8). It prints memory, FLOPs, collectives and a
forecast of the time for each mask ratio. GPUs (gpu:h100x8) are planned by formula. docs/planning.md
explains the columns.
"""

import pathlib
import types

from absl import flags
from rich.table import Table

from flipkit import files, recipe
from flipkit.checks import sides
from flipkit.commands import plan_ahead, printing, shell
from flipkit.errors import ConfigurationError
from flipkit.settings import split_settings

FLAGS = shell.Flags()
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.", flag_values=FLAGS)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips to plan for, such as v3:8x16.", flag_values=FLAGS
)
_MESH = flags.DEFINE_string(
    "mesh", None, "Parts of each batch x parts of each block, such as 64x4.", flag_values=FLAGS
)
_PHASE = flags.DEFINE_integer("phase", 0, "Number of the phase.", flag_values=FLAGS)
_MASKS = flags.DEFINE_string(
    "masks", None, "Mask ratios; default: 0, 0.5, 0.75 and the run's.", flag_values=FLAGS
)
_REMAT = flags.DEFINE_string(
    "remat",
    None,
    "none,dots,block: what the backward pass computes again; default: the run's own, then stronger ones "
    "until it fits.",
    flag_values=FLAGS,
)
_MICROBATCH = flags.DEFINE_string(
    "microbatch", None, "Pairs that pass the towers at a time; 0 is all.", flag_values=FLAGS
)
_LARGEST = flags.DEFINE_bool(
    "largest", False, "Also search the largest batch that fits.", flag_values=FLAGS
)
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.4, "Share of the peak FLOP/s to expect.", flag_values=FLAGS
)
_PRICE = flags.DEFINE_float("price", None, "Price of a chip for an hour.", flag_values=FLAGS)
_PLOT = flags.DEFINE_string("plot", None, "Picture to draw, a .png.", flag_values=FLAGS)
_CACHE = flags.DEFINE_bool(
    "cache", True, "Keep results of compiles; --nocache compiles anew.", flag_values=FLAGS
)
_NEEDS_TOPOLOGY = (_MESH, _MASKS, _REMAT, _MICROBATCH, _LARGEST, _PRICE, _PLOT)


def main(arguments):
    """Prints what a run will cost, without starting it."""
    words = FLAGS.words(arguments, str(__doc__))
    console = printing.console()
    if not words:
        raise ConfigurationError(
            "Expected a recipe: flipkit plan RECIPE [name=value ...]. "
            f"Known: {', '.join(recipe.names())}."
        )
    name, *settings = words

    def run():
        return recipe.make(recipe.load(name), split_settings(settings))

    if _TOPOLOGY.value is not None:
        return plan_ahead.plan(run, name, _options(), console)
    for flag in _NEEDS_TOPOLOGY:
        if flag.value:
            raise ConfigurationError(f"--{flag.name} needs --topology, such as v3:8x16")
    return _count(run(), name, console)


def _options():
    """The values of the flags for a plan ahead."""
    if not 0 < _UTILISATION.value <= 1:
        raise ConfigurationError(
            f"Expected a share above 0 and up to 1. Received: --utilisation {_UTILISATION.value:g}"
        )
    return types.SimpleNamespace(
        topology=_TOPOLOGY.value,
        mesh=_MESH.value,
        phase=_PHASE.value,
        masks=plan_ahead.numbers(_MASKS.value, "masks"),
        remat=None if _REMAT.value is None else _REMAT.value.split(","),
        microbatch=plan_ahead.numbers(_MICROBATCH.value, "microbatch", int) or [None],
        largest=_LARGEST.value,
        utilisation=_UTILISATION.value,
        price=_PRICE.value,
        json=_JSON.value,
        plot=_PLOT.value,
        cache=_CACHE.value,
    )


def _count(run, name, console):
    """Prints the numbers that follow from shapes alone."""
    from flipkit import planning  # imports Keras, too slow for a mistake above

    plan = planning.plan(run)
    console.print(model_table(plan, name))
    if len(plan["masking"]) > 1:
        console.print(masking_table(plan))
    few = max(1, (console.width - 28) // 14)  # phases that fit side by side
    for first in range(0, len(plan["phases"]), few):
        console.print(phases_table(plan, first, few))
    line = f"{plan['flops']:.3g} FLOPs in all: matrix products, forward and backward, with what is "
    console.print(f"{line}computed again to save memory (remat).")
    if plan["data"]["unknown"]:
        printing.say(console, f"Epochs are unknown. {plan['data']['unknown']}")
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        files.write_json(path, plan)
        print(f"Written to {path}")
    return 0


def model_table(plan, name) -> Table:
    """Returns the table of the towers: parameters, tokens, FLOPs."""
    columns = ("", "parameters", "with projection", "tokens", "forward FLOPs")
    unmasked = plan["masking"][0]
    costs, caption = unmasked["flops_by_tower"], None
    if "text" in costs:
        share = costs["text"] / costs["image"]
        caption = f"The text tower costs {share:.2%} of the unmasked image tower.\n"
    title = f"flipkit plan {name}"
    table = printing.table(*columns, title=title, caption=caption, numbers=True)
    for role, tower in plan["towers"].items():
        sizes = [_counted(tower[key]) for key in ("parameters", "with_projection")]
        row = (*sizes, _number(tower["tokens"]), _giga(costs[role]))
        table.add_row(f"{role}: {tower['encoder']}", *row)
        if "with_fixed_positions" in tower:
            table.add_row("  fixed positions too", _counted(tower["with_fixed_positions"]))
    table.add_row("model", "", _counted(plan["parameters"]), "", _giga(unmasked["flops"]))
    return table


def masking_table(plan) -> Table:
    """Returns the table of the FLOPs of a forward pass at each mask ratio."""
    columns = ("mask ratio", "image tokens", "image FLOPs", "with text")
    ratios = ("image", "both", "image*", "both*")
    table = printing.table(
        *columns,
        *ratios,
        title="A pair's forward pass, masked",
        caption="The last four are ratios to mask ratio 0. * as the paper counts, whose code embeds "
        "every patch and drops some afterwards; flipkit drops them first.\n",
        numbers=True,
    )
    for row in plan["masking"]:
        table.add_row(
            f"{row['mask_ratio']:g}",
            _number(row["tokens"]["image"]),
            _giga(row["flops_by_tower"]["image"]),
            _giga(row["flops"]),
            f"{row['image_ratio']:.3f}",
            f"{row['ratio']:.4f}",
            f"{row['official_image_ratio']:.3f}",
            f"{row['official_ratio']:.4f}",
        )
    return table


def phases_table(plan, first=0, count=None) -> Table:
    """Returns the table of `count` phases from index `first` on, or of all: settings and cost."""
    phases = plan["phases"][first:][:count]
    names = (f"phase {first + i}" for i in range(len(phases)))
    table = printing.table("", *names, title="Training", numbers=True)

    def row(label, shown):
        table.add_row(label, *(shown(phase) for phase in phases))

    row("pairs", lambda p: f"{p['samples']:,}")
    row("batch size", lambda p: f"{p['batch_size']:,}")
    row("steps", lambda p: f"{p['steps']:,}")
    row("warm-up steps", lambda p: _number(p["warmup_steps"]))
    row("peak learning rate", lambda p: "" if p["peak_rate"] is None else f"{p['peak_rate']:.4g}")
    if plan["data"]["samples"]:
        row(f"epochs of {plan['data']['samples']:,}", lambda p: f"{p['epochs']:.2f}")
    row("image size", lambda p: _size(p["image_size"]))
    row("mask ratio, image and text", lambda p: f"{p['mask_ratio']:g}, {p['text_mask_ratio']:g}")
    row("tokens", lambda p: ", ".join(_number(count) for count in p["tokens"].values()))
    row("forward FLOPs per pair", lambda p: _giga(p["forward_flops_per_pair"]))
    row("training FLOPs per pair", lambda p: _giga(sum(p["training_flops_per_pair"].values())))
    for tower in plan["towers"]:
        row(f"  of {tower}s", lambda p, t=tower: _giga(p["training_flops_per_pair"][t]))
    row("FLOPs", lambda p: f"{p['flops']:.3g}")
    return table


def _size(value):
    height, width = sides(value)
    return f"{height}" if height == width else f"{height} x {width}"


def _number(value):
    return "" if value is None else f"{value:,}"


def _counted(value):
    return f"{value:,}" if value < 1e7 else f"{value / 1e6:,.1f} M"


def _giga(value):
    return f"{value / 1e9:,.3f} G"
