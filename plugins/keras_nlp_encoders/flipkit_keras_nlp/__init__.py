"""keras-nlp's backbones as image and text towers of flipkit, and its tokenizers, by name.

The hooks return strings: keras-nlp is imported when a preset is first read.
"""

import flipkit

flipkit_api = (1, 1)  # the oldest and the newest hook API this works with


@flipkit.hookimpl
def flipkit_encoders():
    """The names in recipes: `image="keras_nlp_image"`, `text="keras_nlp_text"`."""
    return {
        "keras_nlp_image": "flipkit_keras_nlp.encoders:KerasNLPImage",
        "keras_nlp_text": "flipkit_keras_nlp.encoders:KerasNLPText",
    }


@flipkit.hookimpl
def flipkit_tokenizers():
    """The name in recipes: `tokenizer="keras_nlp"`."""
    return {"keras_nlp": "flipkit_keras_nlp.tokenizers:KerasNLPTokenizer"}
