"""A run's written records: run.json, metrics.jsonl, TensorBoard, progress, and the files at its end."""

import contextlib
import hashlib
import json
import pathlib
import shutil

import keras

from flipkit import files, hosts, keras_inside, optimizers, registry
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical
from flipkit.records import drawing, messages

MASKED_PICTURES, MASKED_STEPS = 4, 4  # on the sheet of what a phase keeps
# What a resumed run may change: how often it reports, and the devices and the memory that it uses.
NOT_COMPARED = (
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "evaluators",
    "distribution",
    "mesh",
)
NOWHERE_COMPARED = ("microbatch", "remat", "scan")  # of a phase, and of a tower


class Journal:
    """Writes a run's records into its workdir, and reports to the user.

    Args:
        folder: the workdir, or None to write nothing.
        record: the content of `run.json`.
        say: called with each line for the user; None is silent.

    Raises:
        ConfigurationError: the workdir holds another run; the message names the differences.
    """

    def __init__(self, folder, record, say=None):
        self.folder = None if folder is None else pathlib.Path(folder)
        self.say = say or (lambda line: None)
        self.seconds, self.last, self.rejected, self._board = 0.0, {}, 0, None
        self.programs: dict[int, int] = {}  # compiled for each phase that this process trained
        self.writes = self.folder is not None and hosts.is_first()  # the others only read
        if self.folder is not None:
            hosts.on_first(lambda: self._claim(record))

    def _claim(self, record):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        if path.exists() and self._begun():
            old, new = files.read_json(path)["run"], record["run"]
            differing = _differences(old, new)
            if differing:  # an earlier flipkit may have had fewer settings, or other forms of them
                # What can't be made here, such as a plugin's object, differs as it is written.
                with contextlib.suppress(ValueError, TypeError):
                    differing = _differences(_renewed(old), _renewed(new))
            if differing:
                shown = "\n  ".join(differing[:10])
                raise ConfigurationError(
                    f"{self.folder} holds another run. It differs from this one in\n  {shown}\n"
                    "Choose another --workdir, or repeat the command that began it."
                )
        else:
            shutil.rmtree(
                self.folder / "tokenizer", ignore_errors=True
            )  # of a run that never began
            files.write_json(path, record)

    def _begun(self):
        """Whether the run in the folder has written a row of metrics or a checkpoint."""
        return bool(read_metrics(self.folder)) or any(self.folder.glob("checkpoints/*"))

    @property
    def metrics_path(self) -> pathlib.Path:
        """One JSON object per line."""
        return self.folder / "metrics.jsonl"

    def rewind(self, step):
        """Removes what was logged after the checkpoint from which the run resumes."""
        if self.folder is None:
            return
        rows = [row for row in read_metrics(self.folder) if row["step"] <= step]
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.last = dict(item for row in rows for item in row.items())
        rejects = _read_lines(self.folder / "rejects.jsonl")
        rejects = [reject for reject in rejects if reject["slot"] < self.last.get("samples", 0)]
        self.rejected = len(rejects)
        hosts.gather(None)  # all have read
        if not self.writes:
            return
        files.write(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        if rejects or (self.folder / "rejects.jsonl").exists():
            lines = "".join(json.dumps(reject) + "\n" for reject in rejects)
            files.write(self.folder / "rejects.jsonl", lines)
        self._board = _tensorboard(self.folder)

    def begin(self, model):
        """Records a digest of the run's initial weights."""
        # A masker's own state, such as an average, is no weight of the model.
        maskers = [getattr(model, name, None) for name in ("masker", "text_masker")]
        own = {v.path for masker in maskers if masker is not None for v in masker.weights}
        own.add(model.step.path)
        self.start = {"initial_weights": fingerprint(v for v in model.weights if v.path not in own)}
        self.say(f"Initial weights {self.start['initial_weights']}.")
        if self.writes:
            files.write_json(self.folder / "start.json", self.start)

    def record(self, phases, here, logs, rejects) -> dict:
        """Writes the window that ends `here`, and returns its row.

        Args:
            phases: the run's.
            here: `flipkit.position.Position`.
            logs: {name: number} of the window.
            rejects: its bad samples, (slot, index, reason).
        """
        phase = phases[here.phase]
        steps = min(here.step - self.last.get("step", 0), here.step_in_phase)
        if "pairs_per_second" in logs:
            self.seconds += steps * phase.batch_size / logs["pairs_per_second"]
        self.reject(rejects)
        row = {
            "step": here.step,
            "phase": here.phase,
            "samples": here.sample,
            "seconds": round(self.seconds, 3),
            "learning_rate": logs["learning_rate"],
            "rejected": self.rejected,
            **{name: float(value) for name, value in logs.items()},
        }
        self.write(row)
        return row

    def write(self, row):
        """Writes one line of metrics, and the same for TensorBoard."""
        self.last.update(row)
        if not self.writes:
            return
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def reject(self, rejects):
        """Writes bad samples: (slot, index, reason)."""
        self.rejected += len(rejects)
        if self.writes and rejects:
            with (self.folder / "rejects.jsonl").open("a", encoding="utf-8") as file:
                for slot, index, reason in rejects:
                    line = {"slot": slot, "index": index, "reason": reason}
                    file.write(json.dumps(line) + "\n")

    def show_masks(self, model, batches, phase):
        """Draws what the next steps keep of the first pictures: `masks_0.png` for phase 0."""
        if not self.writes or not getattr(model, "masks_images", False):
            return
        pictures = batches.pictures(MASKED_PICTURES)
        first = int(model.step)
        masks = model.draw_masks(pictures, range(first, first + MASKED_STEPS))
        drawing.draw_masks(
            [("", *row) for row in zip(pictures, masks, strict=True)],
            model.image.patch_size,
            self.folder / f"masks_{phase}.png",
            title=f"Training keeps {model.image_summary()}",
            first=first,
        )

    def finish(self, model):
        """Writes the finished model, with averaged weights if there are any, and a picture of the run."""
        if self.folder is None:
            return
        with optimizers.averaged_weights(model):
            save_model(model, self.folder / "model.keras")
        if not self.writes:
            return
        picture = drawing.draw_run(read_metrics(self.folder), self.folder / "summary.png")
        self.say(messages.summary(self.last))
        if self.programs:
            self.say(messages.compiled(self.programs))
        pictures = [*sorted(self.folder.glob("masks_*.png")), *([picture] if picture else [])]
        written = ["model.keras", "metrics.jsonl", *(path.name for path in pictures)]
        self.say(f"Written to {self.folder}: {', '.join(written)}")
        if picture is None:
            self.say("No picture: matplotlib is missing (pip install 'flipkit[plot]').")

    def close(self):
        """Flushes and closes the open files."""
        if self._board is not None:
            self._board.close()


def read_metrics(folder) -> list[dict]:
    """The rows of a workdir's metrics.jsonl; a last line cut by a kill is left out."""
    return _read_lines(pathlib.Path(folder) / "metrics.jsonl")


def _read_lines(path):
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return [json.loads(line) for line in lines if line.endswith("}")]


def fingerprint(variables) -> str:
    """Sixteen hex digits that are equal if and only if the variables' paths and values are bit-equal."""
    digest = hashlib.sha256()
    for variable in sorted(variables, key=lambda v: v.path):
        digest.update(canonical(variable.path).encode())
        digest.update(hosts.whole(variable.value).tobytes())
    return digest.hexdigest()[:16]


def save_model(model, path):
    """Keras's `save`, whole or not at all; of several hosts the first writes, without an optimizer."""
    if hosts.count() > 1:
        values = [hosts.whole(variable.value) for variable in model.variables]
        if not hosts.is_first():
            return
        model = _copy(model, values)
    with files.whole(path) as part, keras_inside.without_tensorflow():
        model.save(part)


def _copy(model, values):
    """The model with these values of its variables, all of them on this host."""
    spread = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        config = registry.serialize(model)
        config.pop("compile_config", None)
        copy = registry.deserialize(config)
        if not copy.built:
            copy.build()
        for variable, value in zip(copy.variables, values, strict=True):
            variable.assign(value)
    finally:
        keras.distribution.set_distribution(spread)
    return copy


def _renewed(config):
    """The config of objects made from a run's config: each setting is there, in its present form."""
    return json.loads(json.dumps(registry.serialize(registry.deserialize(config))))


def _differences(old, new, path=""):
    """Paths in which two run configs differ, except for what a resumed run may change."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines, both = [], {**old, **new}
        # Variables are named after a layer's role, and a registered class may move to another module.
        free: set[str] = {*NOWHERE_COMPARED}
        if "trainable" in both:
            free.add("name")
        elif both.get("registered_name"):
            free.add("module")
        for key in both:
            if (path or key not in NOT_COMPARED) and key not in free:
                below = path if key == "config" else f"{path}.{key}".lstrip(".")
                lines += _differences(old.get(key), new.get(key), below)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in _differences(*pair, f"{path}.{i}")
        ]
    return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]


def _tensorboard(folder):
    """A TensorBoard writer, where tensorboardX is installed; without TensorFlow."""
    try:
        import tensorboardX
    except ImportError:
        return None
    return tensorboardX.SummaryWriter(str(folder / "tensorboard"))
