"""Computes tokens, FLOPs, steps and rates of a run from traced shapes."""

from flipkit.planning.counting import flops as flops
from flipkit.planning.estimate import plan as plan
from flipkit.planning.towers import Towers as Towers
