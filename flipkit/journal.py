"""A run's written records: run.json, metrics.jsonl, TensorBoard, progress, and the files at its end."""

import hashlib
import json
import os
import pathlib
import shutil
import time

import keras

from flipkit import optimizers, progress, report
from flipkit.errors import ConfigurationError
from flipkit.paths import canonical
from flipkit.registry import without_tensorflow

MASKED_PICTURES, MASKED_STEPS = 4, 4  # on the sheet of what a phase keeps
NOT_COMPARED = ("log_every", "checkpoint_every", "evaluate_every", "evaluators")


class Journal:
    """Writes what a run does into its workdir, and tells the user.

    Args:
        folder: the workdir, or None to write nothing.
        record: what `run.json` holds.
        say: called with each line for the user; None is silent.
        shows_progress: whether a progress bar is drawn, where stderr is a terminal.

    Raises:
        ConfigurationError: the workdir holds another run; the message names what differs.
    """

    def __init__(self, folder, record, say=None, shows_progress=True):
        self.folder = None if folder is None else pathlib.Path(folder)
        self.say = say or (lambda line: None)
        self.shows_progress = shows_progress
        self.seconds, self.last, self.rejected, self._board = 0.0, {}, 0, None
        self.programs: dict[int, int] = {}  # compiled for each phase that this process trained
        if self.folder is not None:
            self._claim(record)

    def _claim(self, record):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        if path.exists() and self._begun():
            differing = _differences(json.loads(path.read_text())["run"], record["run"])
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
            write_text(path, json.dumps(record, indent=1))

    def _begun(self):
        """Whether the run in the folder got as far as a row of metrics or a checkpoint."""
        return bool(read_metrics(self.folder)) or any(self.folder.glob("checkpoints/*"))

    @property
    def metrics_path(self) -> pathlib.Path:
        """One JSON object per line."""
        return self.folder / "metrics.jsonl"

    def rewind(self, step):
        """Forgets what was logged after the checkpoint that the run goes on from."""
        if self.folder is None:
            return
        rows = [row for row in read_metrics(self.folder) if row["step"] <= step]
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.last = dict(item for row in rows for item in row.items())
        rejects = _read_lines(self.folder / "rejects.jsonl")
        rejects = [reject for reject in rejects if reject["slot"] < self.last.get("samples", 0)]
        self.rejected = len(rejects)
        if rejects or (self.folder / "rejects.jsonl").exists():
            lines = "".join(json.dumps(reject) + "\n" for reject in rejects)
            write_text(self.folder / "rejects.jsonl", lines)
        self._board = _tensorboard(self.folder)

    def begin(self, model):
        """Records what the run starts from: a digest of its initial weights."""
        # What a masker keeps for itself, such as an average, is no weight of the model.
        maskers = [getattr(model, name, None) for name in ("masker", "text_masker")]
        own = {v.path for masker in maskers if masker is not None for v in masker.weights}
        own.add(model.step.path)
        self.start = {"initial_weights": fingerprint(v for v in model.weights if v.path not in own)}
        self.say(f"Initial weights {self.start['initial_weights']}.")
        if self.folder is not None:
            write_text(self.folder / "start.json", json.dumps(self.start))

    def callback(self, run, phase, step, batches):
        """The Keras callback that keeps this journal during a phase."""
        return _Keep(self, run, phase, step, batches)

    def write(self, row):
        """One line of metrics, and the same for TensorBoard."""
        self.last.update(row)
        if self.folder is None:
            return
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def reject(self, rejects):
        """Bad samples: (slot, index, reason)."""
        self.rejected += len(rejects)
        if self.folder is not None and rejects:
            with (self.folder / "rejects.jsonl").open("a", encoding="utf-8") as file:
                for slot, index, reason in rejects:
                    line = {"slot": slot, "index": index, "reason": reason}
                    file.write(json.dumps(line) + "\n")

    def show_masks(self, model, batches, phase):
        """What the model's first steps from here keep of the first pictures: `masks_0.png` for phase 0."""
        if self.folder is None or not getattr(model, "masks_images", False):
            return
        pictures = batches.pictures(MASKED_PICTURES)
        first = int(model.step)
        masks = model.draw_masks(pictures, range(first, first + MASKED_STEPS))
        report.draw_masks(
            [("", *row) for row in zip(pictures, masks, strict=True)],
            model.image.patch_size,
            self.folder / f"masks_{phase}.png",
            title=f"Training keeps {model.image_summary()}",
            first=first,
        )

    def finish(self, model):
        """The finished model, with averaged weights where they are kept, and a picture of the run."""
        if self.folder is None:
            return
        with optimizers.averaged_weights(model):
            save_model(model, self.folder / "model.keras")
        picture = report.draw_run(read_metrics(self.folder), self.folder / "summary.png")
        self.say(report.summary(self.last))
        if self.programs:
            self.say(report.compiled(self.programs))
        pictures = [*sorted(self.folder.glob("masks_*.png")), *([picture] if picture else [])]
        written = ["model.keras", "metrics.jsonl", *(path.name for path in pictures)]
        self.say(f"Written to {self.folder}: {', '.join(written)}")
        if picture is None:
            self.say("No picture: matplotlib is missing (pip install 'flipkit[plot]').")

    def close(self):
        """Flushes what is open."""
        if self._board is not None:
            self._board.close()


class _Keep(keras.callbacks.Callback):
    """Writes a row per window, and moves the progress bar."""

    def __init__(self, journal, run, phase, step, batches):
        super().__init__()
        self.journal, self.run, self.phase, self.step, self.batches = (
            journal,
            run,
            phase,
            step,
            batches,
        )
        self.told = 0
        self.bar = progress.display(journal.shows_progress)

    def on_train_begin(self, logs=None):
        self.bar.start()
        self.meter = self.model.meter
        self.task = self.bar.add_task("compiling", total=self.run.steps, completed=self.step)
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.bar.update(self.task, completed=self.step)

    def on_epoch_end(self, epoch, logs=None):
        rejects = self.batches.rejects[self.told :]
        self.told = len(self.batches.rejects)
        line = report.line(self.record(logs, rejects), self.run.steps)
        # stdout and stderr may be one terminal: the bar makes room for the line.
        self.bar.stop()
        self.journal.say(line)
        self.bar.update(self.task, description=f"step {self.step:,}/{self.run.steps:,}")
        self.bar.start()

    def record(self, logs, rejects) -> dict:
        """Writes down the window that ends at this step, and returns its row.

        Args:
            logs: what Keras and the evaluators have found.
            rejects: its bad samples, (slot, index, reason).
        """
        journal, phase = self.journal, self.run.phases[self.phase]
        before = sum(p.steps for p in self.run.phases[: self.phase])
        samples = sum(p.samples for p in self.run.phases[: self.phase])
        steps = self.step - max(journal.last.get("step", 0), before)
        if "pairs_per_second" in logs:  # pyright: ignore[reportOperatorIssue]
            journal.seconds += steps * phase.batch_size / logs["pairs_per_second"]
        journal.reject(rejects)
        row = {
            "step": self.step,
            "phase": self.phase,
            "samples": samples + (self.step - before) * phase.batch_size,
            "seconds": round(journal.seconds, 3),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "rejected": journal.rejected,
            **{name: float(value) for name, value in logs.items()},
        }
        journal.write(row)
        return row

    def on_train_end(self, logs=None):
        self.journal.programs[self.phase] = self.meter.programs
        self.bar.stop()


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
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()[:16]


def write_text(path, text):
    """Writes a whole file or nothing; several processes may write the same one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def save_model(model, path):
    """Keras's `save`, written whole or not at all."""
    temporary = path.with_name("part." + path.name)
    with without_tensorflow():
        model.save(temporary)
    os.replace(temporary, path)


def _differences(old, new, path=""):
    """Paths in which two run configs differ, but for how often to log and to save."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in {**old, **new}:
            if path or key not in NOT_COMPARED:
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
