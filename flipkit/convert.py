"""`python -m flipkit.convert MODEL TARGET [--format F] [--verify]`: weights from one format to another.

MODEL is whatever kind `python -m flipkit.evaluate` takes; TARGET is where nothing is yet:

    python -m flipkit.convert downloads/ViT-B-16 clip.keras
    python -m flipkit.convert runs/flip_vitb flip_open_clip --format open_clip --verify
    python -m flipkit.convert clip.keras clip_336.keras --image_size 336
    python -m flipkit.convert checkpoint_5 flip.keras --tokenizer vocab.txt
"""

import pathlib
import sys

from absl import flags

from flipkit import commands
from flipkit.errors import ConfigurationError, FlipkitError

_FORMAT = flags.DEFINE_string(
    "format", None, "Format of TARGET. None needed for a TARGET that ends in .keras."
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read TARGET back and compare embeddings before it gets its name."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels per side; positions are resampled. None keeps MODEL's.", 1
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "File, folder or name of a tokenizer that does not lie beside MODEL."
)


def main(arguments):
    """Runs the command line; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise ConfigurationError(f"Expected a model and a target. Usage: {__doc__}")
        source, target = arguments[1:]
        from flipkit import weights
        from flipkit.weights import kinds

        format = _FORMAT.value or ("keras" if pathlib.Path(target).suffix == ".keras" else None)
        if format is None:
            raise ConfigurationError(
                f"Which format shall {target} have? Set --format to one of: "
                f"{', '.join(weights.written())}."
            )
        weights.module(format)  # before anything is read: its name may be wrong
        model = weights.load_pretrained(source, image_size=_IMAGE_SIZE.value)
        if _TOKENIZER.value is not None:
            kinds.give_tokenizer(model, _TOKENIZER.value)
        weights.save_as(model, format, target, verify=_VERIFY.value)
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2
    checked = "; read back, it gives the same embeddings" if _VERIFY.value else ""
    print(f"Written to {target} as {format}{checked}.")
    return 0


if __name__ == "__main__":
    commands.start(main, _FORMAT, _VERIFY, _IMAGE_SIZE, _TOKENIZER, settings=False)
