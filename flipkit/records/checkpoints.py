"""A run's state on disk: weights, optimizer and position in one atomic step, by variable path."""

import pathlib

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from flipkit import optimizers
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical


class Checkpoints:
    """The checkpoints of a run, in `folder`; the newest `keep` stay.

    Orbax writes them in the background, complete or not at all. The state is a pure tree of arrays
    under canonical names beside a JSON document, so that any layout of devices can read it.

    Args:
        read_only: whether the folder is another run's, which must not change.
    """

    def __init__(self, folder, keep=2, read_only=False):
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, max_to_keep=None, create=False
            )
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        # Named here, or a process that has saved nothing yet could not read the state's shapes.
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            epath.Path(pathlib.Path(folder).absolute()), options=options, item_handlers=handlers
        )

    def latest(self) -> int | None:
        """Global step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def position(self) -> dict | None:
        """The position in its run of the newest checkpoint, without reading its weights."""
        if self.latest() is None:
            return None
        args = ocp.args.Composite(position=ocp.args.JsonRestore())
        return self._manager.restore(self.latest(), args=args)["position"]

    def save(self, step: int, model, position: dict):
        """Saves `model`, its optimizer and `position` (JSON) as `step`; returns before it is written."""
        state = {name: variable.value for name, variable in variables(model).items()}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
        )
        self._manager.save(step, args=args)

    def restore(self, model):
        """Puts the newest checkpoint into `model`, built and compiled.

        Raises:
            ConfigurationError: its variables are not the model's; lists missing and unexpected ones.
        """
        step, targets = self.latest(), variables(model)
        saved = self._manager.item_metadata(step)["state"]
        problems = [f"missing: {name}" for name in targets if name not in saved]
        problems += [f"unexpected: {name}" for name in saved if name not in targets]
        problems += [
            f"reshaped: {name} {tuple(saved[name].shape)} -> {tuple(variable.shape)}"
            for name, variable in targets.items()
            if name in saved and tuple(saved[name].shape) != tuple(variable.shape)
        ]
        if problems:
            shown = "\n  ".join(problems[:20])
            raise ConfigurationError(f"The checkpoint of step {step} is not this run's:\n  {shown}")
        # Orbax places each array on the devices of its variable.
        state = {name: variable.value for name, variable in targets.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(state))
        state = self._manager.restore(step, args=args)["state"]
        for name, variable in targets.items():
            variable.assign(state[name])

    def weights(self, model) -> dict[str, np.ndarray]:
        """The newest checkpoint's values of a built model's variables: {canonical path: array}.

        The averages, where the optimizer kept them; nothing else of the optimizer is read. Variables that
        only the checkpoint has come too.
        """
        step = self.latest()
        saved = self._manager.item_metadata(step)["state"]
        sources = {name.removeprefix("model."): name for name in saved if name.startswith("model.")}
        for variable in model.variables:
            average = optimizers.saved_name(variable)
            if average in saved:
                sources[canonical(variable.path).replace("/", ".")] = average
        # The handler that saves restores everything or nothing.
        read = {name: np.empty(saved[name].shape, saved[name].dtype) for name in sources.values()}
        args = ocp.args.PyTreeRestore(
            read,
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in read},
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = reader.restore(self._manager.directory / str(step) / "state", args=args)
        return {path.replace(".", "/"): state[name] for path, name in sources.items()}

    def close(self):
        """Waits until everything is written, and frees the threads that write."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def variables(model) -> dict:
    """Every variable that a resumed run needs: `{"model.image.class_token": variable, ...}`."""
    parts = [("model", model.variables), ("optimizer", model.optimizer.variables)]
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    found = {
        f"{part}.{variable.path.split('/', 1)[-1].replace('/', '.')}": variable
        for part, variables in parts
        for variable in variables
        if id(variable) not in metrics
    }
    count = sum(id(v) not in metrics for _, variables in parts for v in variables)
    if len(found) != count:
        raise ConfigurationError("Two variables have one path; name every layer of your own parts")
    return found
