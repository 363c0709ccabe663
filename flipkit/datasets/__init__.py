"""Sources of samples: `len(data)` and `data[i]`, without batches, sizes, tokens or masks."""

from flipkit import registry
from flipkit.datasets.captioned_shapes import CaptionedShapes
from flipkit.datasets.dataset import Dataset
from flipkit.datasets.named_characters import NamedCharacters
from flipkit.datasets.shards import ImageTextShards

__all__ = ["CaptionedShapes", "Dataset", "ImageTextShards", "NamedCharacters", "get"]


def get(identifier) -> Dataset | None:
    """The dataset that `identifier` describes: a name, an object, its class, its config or None.

    A string with a `/`, `*` or `{` in it, or one that ends in `.tar`, is a pattern of tar shards.
    """
    if isinstance(identifier, str) and (
        set(identifier) & set("/*{") or identifier.endswith(".tar")
    ):
        return ImageTextShards(identifier)
    return registry.get("datasets", identifier, Dataset)
