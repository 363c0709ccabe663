"""The first steps of a run, traced: how long they take, and which part of the model takes the time."""

from flipkit.profiling.steps import profile as profile
