"""Models and embeddings as NumPy's files: a format of weights, a command and an evaluator for flipkit."""

import flipkit


@flipkit.hookimpl
def flipkit_formats():
    """A folder with an array file for each variable."""
    return {"numpy": "flipkit_numpy.folder"}


@flipkit.hookimpl
def flipkit_commands():
    """Pictures to vectors."""
    return {"embed": "flipkit_numpy.command:embed"}


@flipkit.hookimpl
def flipkit_evaluators():
    """Uniformity and alignment of embeddings."""
    return {"sphere": "flipkit_numpy.evaluator:Sphere"}
