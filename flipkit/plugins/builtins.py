"""flipkit's own components, offered through its own hooks; strings, so that a look-up imports nothing."""

import pathlib

from flipkit.plugins.hookspecs import hookimpl


@hookimpl
def flipkit_maskers():
    """Which patches or words a tower sees."""
    return {
        "prioritised": "flipkit.maskers:PrioritisedMasker",
        "random": "flipkit.maskers:RandomMasker",
    }


@hookimpl
def flipkit_encoders():
    """Image and text towers."""
    return {
        "text_transformer": "flipkit.encoders:TextTransformer",
        "vit": "flipkit.encoders:ViT",
    }


@hookimpl
def flipkit_datasets():
    """Sources of samples."""
    return {
        "captioned_shapes": "flipkit.datasets:CaptionedShapes",
        "image_text_shards": "flipkit.datasets:ImageTextShards",
        "named_characters": "flipkit.datasets:NamedCharacters",
    }


@hookimpl
def flipkit_schedules():
    """Learning rates over samples."""
    return {
        "constant": "flipkit.schedules:Constant",
        "warmup_cosine": "flipkit.schedules:WarmupCosine",
    }


@hookimpl
def flipkit_tokenizers():
    """Text to ids."""
    return {
        "bytes": "flipkit.tokenizers:Bytes",
        "clip_bpe": "flipkit.tokenizers:ClipBPE",
        "sentencepiece": "flipkit.tokenizers:SentencePiece",
        "wordpiece": "flipkit.tokenizers:WordPiece",
    }


@hookimpl
def flipkit_optimizers():
    """Optimisers."""
    return {"adamw": "flipkit.optimizers:AdamW", "lars": "flipkit.optimizers:LARS"}


@hookimpl
def flipkit_losses():
    """Contrastive losses."""
    return {
        "contrastive": "flipkit.losses:ContrastiveLoss",
        "distillation": "flipkit.training.distillation:Distillation",
        "sigmoid": "flipkit.losses:SigmoidLoss",
    }


@hookimpl
def flipkit_recipes():
    """Named runs: files in the wheel, in a checkout the folder beside the package."""
    package = pathlib.Path(__file__).parents[1]
    inside, beside = package / "recipes", package.parent / "recipes"
    files = (inside if inside.is_dir() else beside).glob("*.py")
    return {path.stem: str(path) for path in sorted(files)}


@hookimpl
def flipkit_models():
    """Models that run."""
    return {"classifier": "flipkit.models:Classifier", "flip": "flipkit.models:FLIP"}


@hookimpl
def flipkit_evaluators():
    """Measures of a model."""
    return {
        "accuracy": "flipkit.evaluation:Accuracy",
        "caption_choice": "flipkit.evaluation:CaptionChoice",
        "neighbours": "flipkit.evaluation:Neighbours",
        "retrieval": "flipkit.evaluation:Retrieval",
        "zero_shot": "flipkit.evaluation:ZeroShot",
    }


@hookimpl
def flipkit_formats():
    """Formats of weights, in the order in which `detect` tries them."""
    return {
        "keras": "flipkit.weights.keras_file",
        "workdir": "flipkit.weights.workdir",
        "open_clip": "flipkit.weights.open_clip",
        "huggingface": "flipkit.weights.huggingface",
        "preset": "flipkit.weights.preset",
        "t5x": "flipkit.weights.t5x",
        "big_vision": "flipkit.weights.big_vision",
        "keras_hub": "flipkit.weights.keras_hub",
    }


@hookimpl
def flipkit_commands():
    """Commands."""
    return {
        "run": "flipkit.commands.run_recipe:main",
        "plan": "flipkit.commands.plan_recipe:main",
        "profile": "flipkit.commands.profile_recipe:main",
        "compare": "flipkit.commands.compare_settings:main",
        "evaluate": "flipkit.commands.evaluate_model:main",
        "convert": "flipkit.commands.convert_weights:main",
        "show": "flipkit.commands.show_masks:main",
        "plugins": "flipkit.commands.list_plugins:main",
    }
