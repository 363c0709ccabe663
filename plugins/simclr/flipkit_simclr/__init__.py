"""SimCLR (Chen et al., arXiv 2002.05709) for flipkit: a model that learns from pictures without texts."""

import flipkit


@flipkit.hookimpl
def flipkit_models():
    """Two crops of a picture find each other."""
    return {"simclr": "flipkit_simclr.model:SimCLR"}


@flipkit.hookimpl
def flipkit_recipes():
    """On captioned shapes, without their captions."""
    return {"simclr_shapes": "flipkit_simclr.shapes"}
