"""Evaluates models: zero-shot classification, retrieval, captions against foils, accuracy."""

from flipkit.evaluation.classes import class_vectors as class_vectors
from flipkit.evaluation.classes import load_classnames as load_classnames
from flipkit.evaluation.classes import rank_metrics as rank_metrics
from flipkit.evaluation.embedding import Views as Views
from flipkit.evaluation.embedding import encode as encode
from flipkit.evaluation.evaluators import Accuracy as Accuracy
from flipkit.evaluation.evaluators import CaptionChoice as CaptionChoice
from flipkit.evaluation.evaluators import Neighbours as Neighbours
from flipkit.evaluation.evaluators import Retrieval as Retrieval
from flipkit.evaluation.evaluators import ZeroShot as ZeroShot
from flipkit.evaluation.evaluators import make as make
