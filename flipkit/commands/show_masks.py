"""`flipkit show masks [name=value ...]`: draws what each masker keeps of a picture.

    flipkit show masks
    flipkit show masks image=dog.jpg mask_ratio=0.75 maskers=random,gaussian out=masks.png
    flipkit show masks model=runs/shapes image=dog.jpg

Settings: `image` (a file; by default a scene of captioned shapes), `mask_ratio` (0.5), `maskers` (names;
by default all installed ones that read no tower), `patch_size` (16), `image_size` (224), `steps` (5, the
columns), `seed` (0), `out` (masks.png). `model`, of any kind that `flipkit evaluate` reads, draws what
the model's own masker keeps, at the size that it was trained with. The ratio is `mask_ratio`, else the
model's, else 0.5.
"""

import pathlib

from flipkit import settings
from flipkit.commands import shell
from flipkit.errors import ConfigurationError

RATIO = 0.5
SETTINGS = {
    "image": "",
    "model": "",
    "mask_ratio": None,  # the model's, else RATIO
    "maskers": "",
    "patch_size": 16,
    "image_size": 224,
    "steps": 5,
    "seed": 0,
    "out": "masks.png",
}


FLAGS = shell.Flags()


def main(arguments):
    """Draws what each masker keeps of a picture."""
    words = FLAGS.words(arguments, str(__doc__))
    if not words or words[0] != "masks":
        raise ConfigurationError(f"Expected what to show: masks. Usage: {__doc__}")
    given = settings.read(settings.split_settings(words[1:]), SETTINGS, {"mask_ratio": RATIO})
    print(f"Picture: {draw(**{**SETTINGS, **given})}")
    return 0


def draw(
    image, model, mask_ratio, maskers, patch_size, image_size, steps, seed, out
) -> pathlib.Path:
    """Draws the picture of the command line's settings; returns its path."""
    from flipkit.records import drawing

    if model:
        chosen = {
            "maskers": maskers,
            "patch_size": patch_size,
            "image_size": image_size,
            "seed": seed,
        }
        vain = [name for name, value in chosen.items() if value != SETTINGS[name]]
        if vain:
            raise ConfigurationError(
                f"A model has its own masker, sizes and seed: leave out {', '.join(vain)}, or model."
            )
        rows, patch_size, title = _of_model(model, image, mask_ratio, steps)
    else:
        mask_ratio = RATIO if mask_ratio is None else mask_ratio
        rows = _of_maskers(image, mask_ratio, maskers, patch_size, image_size, steps, seed)
        title = f"Mask ratio {mask_ratio:g}"
    path = drawing.draw_masks(rows, patch_size, out, title=title)
    if path is None:
        raise ConfigurationError("Pictures need matplotlib: pip install 'flipkit[plot]'")
    return path


def _of_maskers(image, mask_ratio, maskers, patch_size, image_size, steps, seed):
    """Returns a row for each masker: (name, pixels, masks)."""
    from flipkit import plugins
    from flipkit.maskers import get
    from flipkit.preprocessing import Preprocessing

    if not 0 <= mask_ratio < 1:
        raise ConfigurationError(f"Expected a share in [0, 1). Received: {mask_ratio=}")
    if image_size % patch_size:
        raise ConfigurationError(
            f"Expected an image size divisible by the patch size. Received: {image_size=}, {patch_size=}"
        )
    made = {
        name: get(name) for name in (maskers.split(",") if maskers else plugins.names("maskers"))
    }
    if not maskers:
        made = {n: masker for n, masker in made.items() if not {"words", "tower"} & {*masker.needs}}
    for name, masker in made.items():
        if "tower" in masker.needs:
            raise ConfigurationError(
                f"The masker {name!r} reads a model's tower: show a model that was trained with it, "
                "model=runs/..."
            )
    (pixels,) = Preprocessing().prepare([image or _scene(seed)], image_size)
    drawn = (pixels, patch_size, mask_ratio, steps, seed)
    return [(name, pixels, kept(masker, *drawn)) for name, masker in made.items()]


def _of_model(where, image, mask_ratio, steps):
    """Returns ([the row of the model's masker], its patch size, the picture's title)."""
    from flipkit import weights

    model = weights.load_any(where)
    model.mask_ratio = (model.mask_ratio or RATIO) if mask_ratio is None else mask_ratio
    size = model.image_size or model.image.image_size
    pixels = model.preprocessing.prepare([image or _scene(0)], size)
    masks = model.draw_masks(pixels, range(steps))
    row = (type(model.masker).__name__, pixels[0], masks[0])
    return [row], model.image.patch_size, f"Training keeps {model.image_summary()}"


def kept(masker, pixels, patch_size, mask_ratio, steps, seed=0):
    """Returns what `masker` keeps of a picture at the first steps of training: bool (steps, patches)."""
    import numpy as np

    from flipkit.layers import patchify
    from flipkit.maskers import kept_count
    from flipkit.random import Seed

    grid = tuple(side // patch_size for side in pixels.shape[:2])
    patches = np.asarray(patchify(pixels[None], patch_size))
    keep = kept_count(grid[0] * grid[1], mask_ratio)
    masks = np.zeros((steps, grid[0] * grid[1]), bool)
    for step, mask in enumerate(masks):
        own = Seed(seed, step).named("masker")
        mask[np.asarray(masker(patches, keep=keep, grid=grid, seed=own))[0]] = True
    return masks


def _scene(seed):
    from flipkit.datasets import CaptionedShapes

    return CaptionedShapes(seed=seed, image_size=224)[0]["image"]
