"""A run in numbers: counted from traced shapes, and compiled ahead for devices that are not there."""

from flipkit.planning.ahead import Ahead as Ahead
from flipkit.planning.counting import flops as flops
from flipkit.planning.estimate import plan as plan
from flipkit.planning.topology import Topology as Topology
from flipkit.planning.towers import Towers as Towers
