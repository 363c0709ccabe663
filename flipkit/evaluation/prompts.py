"""Prompt templates: sentences with a place for the class name, for zero-shot classification."""

import string
from collections.abc import Iterable

from flipkit.errors import ConfigurationError, UnknownName, nearest

# "openai_80" and "openai_7" are OpenAI's for ImageNet (github.com/openai/CLIP, notebooks;
# arXiv:2103.00020), in its order and with its grammar. FLIP evaluates with the 7
# (section 4.2 of arXiv:2212.00794).
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "openai_7": (
        "itap of a {}.",  # "I took a picture", after the forum of that name
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "openai_80": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
}


def get(identifier: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the templates of a name in `TEMPLATES`, or the given ones, each with one `{}`.

    Raises:
        UnknownName: no templates have that name; the message names the nearest one.
        ConfigurationError: there is no template, or one has no `{}`, several, or other fields.
    """
    if isinstance(identifier, str):
        if identifier not in TEMPLATES:
            hint = nearest(identifier, TEMPLATES)
            raise UnknownName(f"No prompt templates are called {identifier!r}. {hint}")
        return TEMPLATES[identifier]
    templates = tuple(identifier) if isinstance(identifier, Iterable) else (identifier,)
    if not templates or not all(map(_takes_a_name, templates)):
        raise ConfigurationError(
            "Expected templates with one place for the class name, '{}', such as 'a photo of a {}.'; a "
            f"brace of the text itself is written '{{{{' or '}}}}'. Received: {list(templates)}"
        )
    return templates


def _takes_a_name(template):
    """Returns whether `template` has one `{}` and no other field."""
    if not isinstance(template, str):
        return False
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:  # a brace that stands alone
        return False
    # A place has a field, which is "" in "{}", and neither a format ("{:>9}") nor a conversion ("{!r}").
    places = [part[1:] for part in parts if part[1] is not None]
    return places == [("", "", None)]
