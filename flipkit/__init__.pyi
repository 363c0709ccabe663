"""The public names, for type checkers and editors; __init__.py loads them when first used."""
# ruff: noqa: I001  (one import for each module)

from flipkit import (
    callbacks as callbacks,
    checks as checks,
    configs as configs,
    datasets as datasets,
    encoders as encoders,
    errors as errors,
    evaluation as evaluation,
    files as files,
    keras_inside as keras_inside,
    layers as layers,
    losses as losses,
    maskers as maskers,
    models as models,
    optimizers as optimizers,
    paths as paths,
    plugins as plugins,
    preprocessing as preprocessing,
    random as random,
    recipe as recipe,
    registry as registry,
    schedules as schedules,
    settings as settings,
    study as study,
    testing as testing,
    tokenizers as tokenizers,
    training as training,
    weights as weights,
)
from flipkit.evaluation import prompts as prompts
from flipkit.datasets import (
    CaptionedShapes as CaptionedShapes,
    Dataset as Dataset,
    ImageTextShards as ImageTextShards,
    NamedCharacters as NamedCharacters,
)
from flipkit.distribution import (
    Distribution as Distribution,
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
    Neighbours as Neighbours,
    Retrieval as Retrieval,
    ZeroShot as ZeroShot,
)
from flipkit.feed import (
    Feed as Feed,
)
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
from flipkit.models import (
    Classifier as Classifier,
    FLIP as FLIP,
    MAEDecoder as MAEDecoder,
)
from flipkit.optimizers import (
    AdamW as AdamW,
    LARS as LARS,
)
from flipkit.plugins.hookspecs import (
    hookimpl as hookimpl,
)
from flipkit.preprocessing import (
    Augment as Augment,
    Preprocessing as Preprocessing,
    RandAugment as RandAugment,
)
from flipkit.random import (
    Seed as Seed,
)
from flipkit.recipe import (
    scaled as scaled,
)
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
from flipkit.training.distillation import (
    Distillation as Distillation,
)
from flipkit.weights import (
    load_model as load_model,
    load_pretrained as load_pretrained,
    save_as as save_as,
)

__version__: str
