"""How long a train step takes to compile, with a scan over the blocks and without.

    python benchmarks/compile_time.py                                  # ViT-B/16 and ViT-H/14 of the paper
    python benchmarks/compile_time.py --recipes flip_vitl --remat dots --json found.json

The program is the whole train step: both towers, the loss, its gradient and AdamW's update. `--gradient`
leaves the update out, of which there is one a variable, with a scan or without. Both are traced and
compiled from shapes, so that no weights are allocated. Temporary memory is XLA's figure for the compiled
program. Ratios are to the first row.
"""

import argparse
import json
import pathlib
import time

from flipkit import recipe  # first: it chooses Keras's backend

# isort: split
import jax
import keras
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flipkit.layers.stack import REMATS
from flipkit.planning.program import batch_shapes, enter


def program(name, *, scan, remat, dtype, batch, gradient):
    """The train step of a recipe's model, or its gradient, jitted, and the shapes of its arguments."""
    run = recipe.make(recipe.load(name), {"dtype": dtype})
    towers = ("model.image", "model.text")
    settings = {f"{t}.{k}": v for t in towers for k, v in {"scan": scan, "remat": remat}.items()}
    model, parts, _ = enter(run.with_overrides(settings), 0, None)
    state = tuple([jax.ShapeDtypeStruct(v.shape, v.dtype) for v in part] for part in parts)
    shapes = batch_shapes(model, batch)
    data = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

    def loss_and_gradient(state, data):
        learned, others, optimizer, metrics = state
        told = {"training": True, "optimizer_variables": optimizer}
        return model.loss_and_gradient()(learned, others, metrics, data, None, None, **told)

    if gradient:
        return jax.jit(loss_and_gradient), (state, data)
    return jax.jit(model.train_step, donate_argnums=0), (state, data)


def measure(name, **options):
    """Seconds to trace and to compile, and the program's size and temporary memory."""
    function, shapes = program(name, **options)
    start = time.perf_counter()
    lowered = function.lower(*shapes)
    traced = time.perf_counter()
    found = lowered.compile()
    compiled = time.perf_counter()
    return {
        "recipe": name,
        **options,
        "lines": lowered.as_text().count("\n"),
        "trace": traced - start,
        "compile": compiled - traced,
        "temporary": found.memory_analysis().temp_size_in_bytes,
    }


def table(rows):
    """The rows, with ratios of seconds to the first one."""
    columns = ("recipe", "scan", "lines", "trace, s", "compile, s", "both, beside the first")
    first = rows[0]["trace"] + rows[0]["compile"]
    found = Table(*columns, "temporary, MiB")
    for row in rows:
        both = (row["trace"] + row["compile"]) / first
        found.add_row(
            row["recipe"],
            "yes" if row["scan"] else "no",
            f"{row['lines']:,}",
            f"{row['trace']:.1f}",
            f"{row['compile']:.1f}",
            f"{both:.2f}",
            f"{row['temporary'] / 2**20:,.0f}",
        )
    return found


def main():
    """Prints the table, and writes it as JSON if told where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", default="flip_vitb,flip_vith")
    parser.add_argument("--remat", choices=REMATS, default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--gradient", action="store_true", help="without the optimizer's update")
    parser.add_argument("--json", type=pathlib.Path, help="a file for the numbers")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    told = {"remat": options.remat, "dtype": options.dtype, "batch": options.batch}
    told["gradient"] = options.gradient
    pairs = [(name, scan) for name in options.recipes.split(",") for scan in (False, True)]
    rows = [measure(n, scan=s, **told) for n, s in track(pairs, "compiling", transient=True)]
    Console(width=110).print(table(rows))
    device = jax.devices()[0].device_kind
    print(f"keras {keras.__version__}, jax {jax.__version__}, {device}, {told}")
    if options.json:
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
