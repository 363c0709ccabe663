"""Runs: described by phases, changed by path, trained."""

from flipkit.records.journal import read_metrics as read_metrics
from flipkit.training.description import Run as Run
from flipkit.training.loop import train_tokenizer as train_tokenizer
from flipkit.training.phase import CURVES as CURVES
from flipkit.training.phase import Phase as Phase
from flipkit.training.phase import mask_phases as mask_phases
