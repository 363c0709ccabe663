"""`flipkit embed MODEL data=DATA out=FILE.npy`: pictures to vectors."""

import flipkit

SETTINGS = {"data": None, "out": "vectors.npy"}


def embed(words):
    """Writes a model's vectors of a data set's pictures as a NumPy file.

    flipkit embed MODEL data='test-*.tar' out=vectors.npy
    flipkit embed MODEL data=captioned_shapes data.size=100

    MODEL is a model of any kind that `flipkit evaluate` reads. `out` is the file (vectors.npy), with a row
    for each picture.
    """
    if not words:
        raise flipkit.ConfigurationError(
            "Expected a model: flipkit embed MODEL data='test-*.tar' out=vectors.npy"
        )
    where, *words = words
    texts = flipkit.settings.split_settings(words)
    of_data = {n.removeprefix("data."): texts.pop(n) for n in [*texts] if n.startswith("data.")}
    settings = SETTINGS | flipkit.settings.read(texts, SETTINGS)
    data = flipkit.datasets.get(settings["data"])
    if data is None:
        raise flipkit.ConfigurationError("Expected data='test-*.tar', or a dataset's name")
    values = {name: flipkit.settings.parse(text) for name, text in of_data.items()}
    data = flipkit.configs.changed(data, values)
    vectors, _ = flipkit.evaluation.encode(flipkit.weights.load_any(where), data)
    import numpy as np

    with flipkit.files.whole(settings["out"]) as part:
        np.save(part, vectors)
    print(
        f"Written to {settings['out']}: {vectors.shape[0]:,} vectors of {vectors.shape[1]} numbers."
    )
