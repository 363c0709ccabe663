"""Runs at a small size, for a test or a first trial."""

from flipkit.checks import sides
from flipkit.errors import ConfigurationError

TINY = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
TINY |= {"vocab": 300, "length": 12}


def scaled(run, scale: str):
    """Returns `run` at the size of `scale`, which is an argument of recipes for tests and first trials.

    Args:
        run: `flipkit.Run`.
        scale: "full" returns the run itself. "tiny" returns one of the same structure that a CPU trains in
            seconds. Each phase has two steps of eight pairs. The model's arguments in TINY have its
            values. Data and evaluations are captioned shapes. The tokenizer is a word-piece tokenizer
            trained on them. The weights are initialised from the seed.

    Returns:
        A `flipkit.Run`.
    """
    if scale == "full":
        return run
    if scale != "tiny":
        raise ConfigurationError(f"Expected scale 'full' or 'tiny'. Received: {scale!r}")
    from flipkit import datasets  # Keras is imported already, since `run` exists

    config = run.get_config()
    _shrink(config["model"])
    for phase in config["phases"]:
        if phase["config"]["image_size"] is not None:
            share = max(sides(phase["config"]["image_size"])) / max(
                sides(run.model.image.image_size)
            )
            patches = max(1, round(share * TINY["image_size"] / TINY["patch_size"]))
            phase["config"]["image_size"] = patches * TINY["patch_size"]
    labelled, reads_text = run.model.reads == "label", run.model.reads == "text"
    values = {
        # Only the test split has labels; word pieces are trained and need no file.
        **({"model.classes": 512} if labelled else {}),
        **({"model.tokenizer": "wordpiece"} if reads_text else {}),
        "data": datasets.CaptionedShapes("test" if labelled else "train", 64, image_size=32),
        "init": None,
        "feed.threads": 1,
        "feed.workers": 0,
        "log_every": 1,
        "checkpoint_every": 0,
        "evaluate_every": 0,
    }
    known = run.paths()
    for i in range(len(run.phases)):
        values |= {f"phases.{i}.pairs": 16, f"phases.{i}.batch_size": 8}
        if f"phases.{i}.schedule.warmup" in known:
            values[f"phases.{i}.schedule.warmup"] = 8
    for name, evaluator in run.evaluators.items():
        split = getattr(getattr(evaluator, "data", None), "split", "test")
        values[f"evaluators.{name}.data"] = datasets.CaptionedShapes(split, 16, image_size=32)
        if f"evaluators.{name}.classnames" in known:
            values[f"evaluators.{name}.classnames"] = None  # the data has its own
    return type(run).from_config(config).with_overrides(values)


def _shrink(node):
    """Sets the sizes in a config, and in the configs inside it, to those of TINY."""
    if isinstance(node, dict):
        for name, value in node.items():
            sized = name in TINY and value is not None and not isinstance(value, dict)
            node[name] = TINY[name] if sized else value
            _shrink(value)
    elif isinstance(node, list):
        for item in node:
            _shrink(item)
