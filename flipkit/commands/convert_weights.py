"""`flipkit convert MODEL TARGET [--format F] [--verify]`: converts weights from one format to another.

MODEL is a model of any kind that `flipkit evaluate` reads. TARGET is a path that does not exist yet:

    flipkit convert downloads/ViT-B-16 clip.keras
    flipkit convert runs/flip_vitb flip_open_clip --format open_clip --verify
    flipkit convert clip.keras clip_336.keras --image_size 336
    flipkit convert checkpoint_5 flip.keras --tokenizer vocab.txt
"""

import pathlib

from absl import flags

from flipkit.commands import shell
from flipkit.errors import ConfigurationError

FLAGS = shell.Flags()
_FORMAT = flags.DEFINE_string(
    "format",
    None,
    "Format of TARGET. Not needed for a TARGET that ends in .keras.",
    flag_values=FLAGS,
)
_VERIFY = flags.DEFINE_bool(
    "verify",
    False,
    "Read TARGET back and compare embeddings before renaming it to TARGET.",
    flag_values=FLAGS,
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Pixels per side; positions are resampled. None keeps MODEL's.",
    1,
    flag_values=FLAGS,
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "File, folder or name of a tokenizer that is not beside MODEL.",
    flag_values=FLAGS,
)


def main(arguments):
    """Converts weights from one format to another."""
    words = FLAGS.words(arguments, str(__doc__), settings=False)
    if len(words) != 2:
        raise ConfigurationError(f"Expected a model and a target. Usage: {__doc__}")
    source, target = words
    from flipkit import weights
    from flipkit.weights import kinds

    format = _FORMAT.value or ("keras" if pathlib.Path(target).suffix == ".keras" else None)
    if format is None:
        raise ConfigurationError(
            f"Expected a format for {target}. Set --format to one of: {', '.join(weights.written())}."
        )
    weights.module(format)  # raises for an unknown format before anything is read
    model = weights.load_pretrained(source, image_size=_IMAGE_SIZE.value)
    if _TOKENIZER.value is not None:
        kinds.give_tokenizer(model, _TOKENIZER.value)
    weights.save_as(model, format, target, verify=_VERIFY.value)
    checked = "; read back, the model computes the same embeddings" if _VERIFY.value else ""
    print(f"Written to {target} as {format}{checked}.")
    return 0
