"""`python -m flipkit.convert SOURCE TARGET [--format F] [--verify]`: weights from one format to another.

SOURCE is anything flipkit.load_pretrained reads; TARGET is where nothing is yet:

    python -m flipkit.convert downloads/ViT-B-16 clip.keras
    python -m flipkit.convert runs/flip_vitb flip_open_clip --format open_clip --verify
    python -m flipkit.convert clip.keras clip_336.keras --image_size 336
"""

import pathlib
import sys

from absl import app, flags, logging

from flipkit.errors import ConfigurationError, FlipkitError

_FORMAT = flags.DEFINE_string(
    "format", None, "Format of TARGET. None needed for a TARGET that ends in .keras."
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read TARGET back and compare embeddings before it gets its name."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels per side; positions are resampled. None keeps SOURCE's.", 1
)


def main(arguments):
    """Runs the command line; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise ConfigurationError(f"Expected a source and a target. Usage: {__doc__}")
        source, target = arguments[1:]
        from flipkit import weights

        format = _FORMAT.value or ("keras" if pathlib.Path(target).suffix == ".keras" else None)
        if format is None:
            raise ConfigurationError(
                f"Which format shall {target} have? Set --format to one of: "
                f"{', '.join(weights.written())}."
            )
        weights.module(format)  # before anything is read: its name may be wrong
        model = weights.load_pretrained(source, image_size=_IMAGE_SIZE.value)
        weights.save_as(model, format, target, verify=_VERIFY.value)
    except FlipkitError as problem:
        print(f"flipkit: {problem}", file=sys.stderr)
        return 2
    checked = "; read back, it gives the same embeddings" if _VERIFY.value else ""
    print(f"Written to {target} as {format}{checked}.")
    return 0


if __name__ == "__main__":
    flags.FLAGS.set_gnu_getopt(True)
    logging.set_verbosity(logging.WARNING)
    app.run(main)
