"""A run in numbers, counted from traced shapes."""

from flipkit.planning.counting import flops as flops
from flipkit.planning.estimate import plan as plan
from flipkit.planning.towers import Towers as Towers
