"""`flipkit evaluate MODEL EVALUATOR [name=value ...]`: evaluates a model.

MODEL is a run's folder, a .keras file, a folder of open_clip, Hugging Face, KerasHub or save_to_preset,
big_vision's .npz, or a checkpoint of the official FLIP. EVALUATOR is zero_shot, retrieval,
caption_choice, neighbours or, for classifiers, accuracy; `flipkit plugins --hook evaluators` lists also
those of plugins, `--hook formats` the formats of MODEL:

    flipkit evaluate M zero_shot data='test-*.tar' classnames=classnames.json
    flipkit evaluate M zero_shot ... mask_ratio=0.5 ensemble=true
    flipkit evaluate M retrieval data='test-*.tar'
    flipkit evaluate M accuracy data='test-*.tar'
    flipkit evaluate M neighbours data='test-*.tar'
    flipkit evaluate M caption_choice data=captioned_shapes data.split=word_order

model.tokenizer=FILE names a tokenizer that is not beside MODEL. The results are stored in
evaluations.json, by model, data and settings: in the folder of a run, else in the current one.
--results FILE names another file.
"""

import pathlib

from absl import flags
from rich.table import Table

from flipkit.commands import printing, shell
from flipkit.errors import ConfigurationError
from flipkit.process import cache_programs
from flipkit.records import findings, messages
from flipkit.settings import split_settings

TOKENIZER = "model.tokenizer"
FLAGS = shell.Flags()
_RESULTS = flags.DEFINE_string(
    "results",
    None,
    "JSON file of the results; default: evaluations.json in the run's or the current folder.",
    flag_values=FLAGS,
)


def main(arguments):
    """Evaluates a model."""
    words = FLAGS.words(arguments, str(__doc__))
    if len(words) < 2:
        raise ConfigurationError(f"Expected a model and an evaluator. Usage: {__doc__}")
    where, name, *settings = words
    settings = split_settings(settings)
    tokenizer = settings.pop(TOKENIZER, None)
    from flipkit import evaluation, weights
    from flipkit.weights import kinds

    evaluator = evaluation.make(name, settings)
    out = pathlib.Path(_RESULTS.value) if _RESULTS.value else findings.place(where)
    findings.read(out)  # a file that cannot be extended raises before an hour of work
    cache_programs()
    model = weights.load_any(where, tokenizer)
    if getattr(evaluator, "reads_text", False) and hasattr(model, "tokenizer"):
        kinds.require_tokenizer(model, where)
    found = evaluator(model)
    printing.console().print(table(found, f"{name} of {where}"))
    chosen = evaluator.get_config() | ({} if tokenizer is None else {TOKENIZER: tokenizer})
    entry = {"model": str(where), "step": int(model.step), "evaluator": name}
    kept = findings.keep(out, {**entry, "settings": chosen, "found": found})
    print(f"Kept in {out}, the {'only one' if len(kept) == 1 else f'newest of {len(kept)}'}.")
    return 0


def table(found, title) -> Table:
    """Returns a table with a row for each group of metrics and a column for each metric."""
    groups = list(dict.fromkeys(name.rpartition("/")[0] for name in found))
    metrics = list(dict.fromkeys(name.rpartition("/")[2] for name in found))
    result = printing.table("", *metrics, title=title, numbers=True)
    for group in groups:
        cells = (found.get(f"{group}/{metric}" if group else metric) for metric in metrics)
        shown = (
            "" if cell is None else _shown(metric, cell)
            for metric, cell in zip(metrics, cells, strict=True)
        )
        result.add_row(group or "all", *shown)
    return result


def _shown(metric, value):
    if isinstance(value, int):
        return f"{value:,}"
    return messages.shown(metric, value)
