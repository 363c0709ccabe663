"""A run as a description: an object that can be read, changed by path, and started."""

import importlib.metadata
import json
import os
from collections.abc import Callable

import keras

from flipkit import configs, datasets, losses, models, optimizers, plugins
from flipkit import position as positions
from flipkit.checks import as_seed
from flipkit.distribution import LAYOUTS
from flipkit.errors import ConfigurationError, UnknownName, nearest
from flipkit.feed import Feed
from flipkit.models.masked import checked_size
from flipkit.models.trainable import Trainable
from flipkit.position import Position
from flipkit.registry import Configurable, register
from flipkit.training import loop
from flipkit.training.phase import PHASE_SETTINGS, Phase, whole_number


@register
class Run(Configurable):
    """A training run as a description: what a recipe returns.

    `start` recreates every Keras object from its config, inside the distribution's scope, and trains the
    copies, so that a run can be changed, written down and started again.

    Args:
        model: `flipkit.FLIP`, `flipkit.Classifier` on labelled pictures, or another
            `flipkit.models.Trainable`.
        data: a dataset, its name, or a pattern of tar shards.
        feed: `flipkit.Feed`, how samples become batches.
        optimizer: a name or an object; its learning rate comes from the phases' schedules.
        phases: list of `flipkit.Phase`, in order.
        loss: a name or an object; None is the model's own: "contrastive" for a FLIP.
        evaluators: {name: evaluator}, such as `flipkit.ZeroShot`, run every `evaluate_every` steps and at
            the end of each phase. If an evaluator has a method `check(model)`, the run calls it before
            the first step: it raises what calling the evaluator would raise.
        init: what `flipkit.load_pretrained` reads, or another model's `.keras` file: the model begins with
            the weights there, learned positions resampled to the model's grid and the patch embedding to
            the patch size; None draws them. A model of another class takes the image tower alone. A
            resumed run does not read it.
        seed: int: initial weights, masks, dropout, order and crops are functions of it.
        distribution: how the run is spread over devices, as in `flipkit.Distribution`: "data_parallel",
            "fully_sharded", "tensor_parallel"; None is one device.
        mesh: parts of each batch x parts of each block, "64x4"; None: as `flipkit.Distribution` has it.
        log_every, checkpoint_every, evaluate_every: steps; 0 is only at the end. The latter two are
            rounded up to a multiple of the first.
    """

    def __init__(
        self,
        model,
        *,
        data=None,
        feed=None,
        optimizer="adamw",
        phases=(),
        loss=None,
        evaluators=None,
        init=None,
        seed=0,
        distribution=None,
        mesh=None,
        log_every=20,
        checkpoint_every=500,
        evaluate_every=0,
    ):
        self.model, self.data = models.get(model), datasets.get(data)
        self.feed = feed or Feed()
        self.optimizer = optimizers.get(optimizer)
        self.loss = losses.get(loss or getattr(self.model, "default_loss", None))
        self.phases, self.evaluators = list(phases), dict(evaluators or {})
        self.init = str(init) if isinstance(init, os.PathLike) else init
        if not isinstance(self.init, (str, type(None))):
            raise ConfigurationError(f"Expected a path or None. Received: {init=}")
        self.seed, self.distribution, self.mesh = as_seed(seed), distribution, mesh
        if distribution is not None and distribution not in LAYOUTS:
            known = nearest(str(distribution), LAYOUTS)
            raise UnknownName(f"Unknown distribution: {distribution!r}. {known}")
        self.log_every = whole_number("log_every", log_every)
        self.checkpoint_every = whole_number("checkpoint_every", checkpoint_every, least=0)
        self.evaluate_every = whole_number("evaluate_every", evaluate_every, least=0)
        if not self.phases:
            raise ConfigurationError("A run needs at least one phase: phases=[flipkit.Phase(...)]")
        kinds = [("model", self.model, Trainable), ("feed", self.feed, Feed)]
        for name, value, kind in [*kinds, *(("phases", phase, Phase) for phase in self.phases)]:
            if not isinstance(value, kind):
                raise ConfigurationError(f"Expected a {kind.__name__}. Received: {name}={value!r}")
        for index, phase in enumerate(self.phases):
            for name in PHASE_SETTINGS:
                if getattr(phase, name) is not None and not hasattr(self.model, name):
                    raise ConfigurationError(
                        f"A {type(self.model).__name__} has no {name}. Received: "
                        f"phases.{index}.{name}={getattr(phase, name)!r}"
                    )
            if phase.image_size is not None:
                checked_size(phase.image_size, self.model.image)

    def get_config(self):
        config = super().get_config()
        for state in ("build_config", "compile_config"):  # a description has no weights
            config["model"].pop(state, None)
        config["optimizer"]["config"].pop("name", None)  # Keras numbers them: sgd, sgd_1, ...
        return config

    # Description --------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def count_data(self) -> int:
        """The number of samples to train on; raises if there are none, or no data at all."""
        if self.data is None:
            raise ConfigurationError(
                "No data to train on: set data.path='/data/laion400m/*.tar' (tar shards) or "
                "data=captioned_shapes (built in)."
            )
        return len(self.data)

    def with_override(self, path: str, value) -> "Run":
        """A copy with the argument at a dotted `path` changed, such as `model.masker.block`."""
        return self.with_overrides({path: value})

    def with_overrides(self, values: dict[str, object]) -> "Run":
        """A copy with the arguments at dotted paths changed: see `flipkit.configs.changed`."""
        return configs.changed(self, values)

    def paths(self) -> dict[str, object]:
        """Everything that can be overridden: {dotted path: value}, components as their class."""
        return configs.paths(self)

    def anew(self) -> "Run":
        """The same run with every object made again and its model seeded, to be trained or planned.

        Call it where the run's distribution is in force.
        """
        run = type(self).from_config(self.get_config())
        if run.model.seed is None:
            run.model.seed = run.seed
        return run

    def position(self, step: int) -> Position:
        """Where the run is after `step` steps."""
        return positions.at(self.phases, step)

    # Training -----------------------------------------------------------------------------------

    def start(
        self,
        workdir=None,
        *,
        recipe=None,
        say: Callable[[str], None] | None = None,
        pause: Callable[[int], None] | None = None,
    ):
        """Trains, and returns the model; resumes from the newest checkpoint in `workdir`.

        Args:
            workdir: folder for `run.json`, `metrics.jsonl`, checkpoints, `model.keras` and pictures,
                of the curves and of what each phase's mask keeps; None keeps nothing.
            recipe: the recipe's name, for the records.
            say: called with lines of progress; None is silent.
            pause: called with the step when a phase's program is compiled and after each logging
                window, when no step is on its way; the run continues when it returns. A caller that
                passes it shows the progress itself.

        Raises:
            ConfigurationError: another backend than JAX, or a workdir that holds another run.
            DataError: the data can't be used.
        """
        return loop.train(self, workdir, recipe=recipe, say=say, pause=pause)

    def throughput(
        self, seconds=5.0, rounds=5, pause: Callable[[float], None] | None = None
    ) -> float:
        """Pairs per second of the whole run, the mean over `rounds` windows that take `seconds` together.

        Each phase has its share of the rounds, at least three. The trained model is thrown away.

        Args:
            pause: called when a phase's program is compiled and after each round, with the share of
                finished rounds, from 0 to 1, so that several runs can be measured in turns.
        """
        return loop.throughput(self, seconds, rounds, pause)

    def record(self, recipe=None) -> dict:
        """The content of `run.json`: the run's config and the versions of its packages."""
        packages = ("flipkit", "jax", "jaxlib", "grain", "orbax-checkpoint", "numpy")
        versions = {name: importlib.metadata.version(name) for name in packages}
        versions["keras"] = keras.__version__  # a nightly build's distribution has another name
        return {
            "recipe": recipe,
            "run": json.loads(json.dumps(self.get_config())),
            "versions": versions,
            "plugins": plugins.distributions(),
        }
