"""The released code's settings where they differ from the paper's: another recipe's run, changed.

github.com/facebookresearch/flip; docs/paper.md lists the differences. The code's epochs are ImageNet's, in
whole batches; LAION-2B has a base rate of its own; all is float32, and the token table has a row more.

flipkit run flip_released data.path='/data/laion400m/*.tar' distribution=data_parallel
flipkit run flip_released of=flip_vith data_set=laion2b pairs=25.6e9 data.path='/data/laion2b/*.tar'
"""

import flipkit

BASE_RATES = {"laion400m": 4e-6, "laion2b": 2e-6}  # per 256 pairs; Table 10 has the first alone
PARTS = ("model", "model.image", "model.text")


def recipe(
    of="flip_vitl", data_set="laion400m", batch_size=65_536, pairs=12_800_000_000, scale="full"
):
    """The run of one of the paper's recipes, as the released code trains it.

    Args:
        of: the recipe whose run is changed, such as flip_vitb or flip_vith.
        data_set: "laion400m" or "laion2b": which base rate the code takes.
        batch_size, pairs: of that recipe.
        scale: "tiny" makes it a test on a CPU.
    """
    if data_set not in BASE_RATES:
        raise flipkit.ConfigurationError(
            f"Expected data_set 'laion400m' or 'laion2b'. Received: {data_set!r}"
        )
    run = flipkit.recipe.load(of)(batch_size=batch_size, pairs=pairs)

    def samples(count):
        # 10,000 epochs of 19 steps for 12.8 billion pairs at a batch of 65,536.
        epochs, batches = count / 1_280_000, 1_281_167 // batch_size
        return round(epochs * batches) * batch_size

    changes: dict[str, object] = {f"{part}.dtype": "float32" for part in PARTS}
    changes["model.text.vocab"] = run.model.text.vocab + 1  # for tokens outside the vocabulary
    for i, phase in enumerate(run.phases):
        changes[f"phases.{i}.pairs"] = samples(phase.pairs)
        changes[f"phases.{i}.schedule.warmup"] = samples(phase.schedule.warmup)
    changes["phases.0.schedule.peak"] = BASE_RATES[data_set] * batch_size / 256
    return flipkit.scaled(run.with_overrides(changes), scale)
