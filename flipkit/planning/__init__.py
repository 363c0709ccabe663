"""A run in numbers: counted from traced shapes, and compiled ahead for devices that are not there.

`flipkit.planning.ahead` is not imported here: it needs what trains, with Grain and Orbax.
"""

from flipkit.planning.counting import flops as flops
from flipkit.planning.estimate import plan as plan
from flipkit.planning.towers import Towers as Towers
