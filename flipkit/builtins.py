"""What flipkit ships, offered through its own hooks; strings, so that asking imports nothing."""

import pathlib

from flipkit.hookspecs import hookimpl


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
        "distillation": "flipkit.distillation:Distillation",
        "sigmoid": "flipkit.losses:SigmoidLoss",
    }


@hookimpl
def flipkit_recipes():
    """Runs worth naming: files in the wheel, in a checkout the folder beside the package."""
    package = pathlib.Path(__file__).parent
    inside, beside = package / "recipes", package.parent / "recipes"
    files = (inside if inside.is_dir() else beside).glob("*.py")
    return {path.stem: str(path) for path in sorted(files)}
