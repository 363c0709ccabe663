"""The layers of both towers: patches, gathering, attention, dropout, transformer blocks."""

from flipkit.layers.attention import ATTENTION_IMPLEMENTATIONS as ATTENTION_IMPLEMENTATIONS
from flipkit.layers.attention import Attention as Attention
from flipkit.layers.dropout import Dropout as Dropout
from flipkit.layers.patches import gather as gather
from flipkit.layers.patches import patchify as patchify
from flipkit.layers.patches import resample_positions as resample_positions
from flipkit.layers.patches import resampling as resampling
from flipkit.layers.patches import sincos_positions as sincos_positions
from flipkit.layers.patches import unpatchify as unpatchify
from flipkit.layers.transformer import ACTIVATIONS as ACTIVATIONS
from flipkit.layers.transformer import MLP as MLP
from flipkit.layers.transformer import AttentionPool as AttentionPool
from flipkit.layers.transformer import LayerScale as LayerScale
from flipkit.layers.transformer import TransformerBlock as TransformerBlock
from flipkit.layers.transformer import activation as activation
from flipkit.layers.transformer import layer_norm as layer_norm
