"""The public names, for type checkers and editors; __init__.py loads them when first used."""
# ruff: noqa: I001  (one import for each module)

from flipkit import (
    callbacks as callbacks,
    datasets as datasets,
    encoders as encoders,
    errors as errors,
    evaluation as evaluation,
    layers as layers,
    losses as losses,
    maskers as maskers,
    optimizers as optimizers,
    plugins as plugins,
    preprocessing as preprocessing,
    prompts as prompts,
    random as random,
    registry as registry,
    schedules as schedules,
    study as study,
    testing as testing,
    tokenizers as tokenizers,
    training as training,
    weights as weights,
)
from flipkit.classifier import Classifier as Classifier
from flipkit.datasets import (
    CaptionedShapes as CaptionedShapes,
    Dataset as Dataset,
    ImageTextShards as ImageTextShards,
    NamedCharacters as NamedCharacters,
)
from flipkit.distillation import (
    Distillation as Distillation,
)
from flipkit.encoders import (
    TextTransformer as TextTransformer,
    ViT as ViT,
)
from flipkit.errors import (
    BadSample as BadSample,
    ConfigurationError as ConfigurationError,
    DataError as DataError,
    FlipkitError as FlipkitError,
    PluginError as PluginError,
    UnknownName as UnknownName,
)
from flipkit.evaluation import (
    Accuracy as Accuracy,
    CaptionChoice as CaptionChoice,
    Retrieval as Retrieval,
    ZeroShot as ZeroShot,
)
from flipkit.feed import Feed as Feed
from flipkit.hookspecs import hookimpl as hookimpl
from flipkit.layers import (
    Attention as Attention,
    Dropout as Dropout,
    TransformerBlock as TransformerBlock,
)
from flipkit.losses import (
    ContrastiveLoss as ContrastiveLoss,
    Loss as Loss,
)
from flipkit.maskers import (
    Masker as Masker,
    PrioritisedMasker as PrioritisedMasker,
    RandomMasker as RandomMasker,
)
from flipkit.model import (
    FLIP as FLIP,
    load_model as load_model,
)
from flipkit.optimizers import (
    AdamW as AdamW,
    LARS as LARS,
)
from flipkit.preprocessing import (
    Augment as Augment,
    Preprocessing as Preprocessing,
    RandAugment as RandAugment,
)
from flipkit.random import Seed as Seed
from flipkit.recipe import scaled as scaled
from flipkit.reconstruction import MAEDecoder as MAEDecoder
from flipkit.schedules import (
    Constant as Constant,
    Schedule as Schedule,
    WarmupCosine as WarmupCosine,
)
from flipkit.tokenizers import (
    Bytes as Bytes,
    ClipBPE as ClipBPE,
    SentencePiece as SentencePiece,
    Tokenizer as Tokenizer,
    WordPiece as WordPiece,
)
from flipkit.training import (
    Phase as Phase,
    Run as Run,
    mask_phases as mask_phases,
)
from flipkit.weights import (
    load_pretrained as load_pretrained,
    save_as as save_as,
)

__version__: str
