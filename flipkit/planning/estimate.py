"""Computes tokens, FLOPs, steps and rates of a run from traced shapes."""

from flipkit.errors import FlipkitError
from flipkit.planning.towers import MASKS, Towers

RATIOS = (0.0, 0.5, 0.75)  # those of the paper's Table 1a


def plan(run) -> dict:
    """Computes the numbers of a run from its model, schedules and phases; returns a dict for JSON.

    Args:
        run: `flipkit.Run`.

    Returns:
        `parameters`; `towers`, by name, each with its encoder, parameters and tokens; `masking`, a list
        of `Towers.masking` at mask ratios 0, 0.5, 0.75 and the run's own, at the tower's own image size;
        `data`, with the number of samples where it can be counted; `phases`, in order, each at its image
        size; `flops`, of all phases.
    """
    towers = Towers(run.model)
    sized = {None: towers}  # by image size
    samples, unknown = None, None
    try:
        samples = run.count_data()
    except FlipkitError as problem:
        unknown = str(problem)
    ratios, phases = {name: getattr(run.model, name, 0.0) for name in MASKS}, []
    size = getattr(run.model, "image_size", None)
    for phase in run.phases:
        changed = {name: getattr(phase, name) for name in MASKS}
        ratios |= {name: ratio for name, ratio in changed.items() if ratio is not None}
        size = phase.image_size or size
        if size not in sized:
            sized[size] = Towers(run.model, size)
        phases.append(_phase(phase, sized[size], *ratios.values()))
        phases[-1]["epochs"] = samples and phase.samples / samples
    own = {phase["mask_ratio"] for phase in phases}
    return {
        "parameters": towers.parameters,
        "towers": {name: towers.summary(name) for name in towers.encoders},
        "masking": [towers.masking(r) for r in sorted({*RATIOS, *own} if towers.masks else {0.0})],
        "data": {"samples": samples, "unknown": unknown},
        "phases": phases,
        "flops": sum(phase["flops"] for phase in phases),
    }


def _phase(phase, towers, mask_ratio, text_mask_ratio):
    schedule = phase.schedule
    forward = towers.masking(mask_ratio, text_mask_ratio)
    training = towers.training(mask_ratio, text_mask_ratio)
    if phase.microbatch is not None:  # each tower computes its embeddings once more
        again = forward["flops_by_tower"]
        training = {tower: flops + again[tower] for tower, flops in training.items()}
    warmup = getattr(schedule, "warmup", None)  # a plugin's schedule may have none, and no peak
    return {
        "pairs": phase.pairs,
        "batch_size": phase.batch_size,
        "steps": phase.steps,
        "samples": phase.samples,
        "peak_rate": getattr(schedule, "peak", None),
        "warmup_steps": None if warmup is None else int(warmup // phase.batch_size),
        "mask_ratio": mask_ratio,
        "text_mask_ratio": text_mask_ratio,
        "image_size": towers.image_size,
        "tokens": forward["tokens"],
        "forward_flops_per_pair": forward["flops"],
        "training_flops_per_pair": training,
        "flops": phase.samples * sum(training.values()),
    }
