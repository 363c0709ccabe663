"""Finds recipes, sets their arguments, makes runs and tiny runs of them."""

from flipkit.recipe.finding import load as load
from flipkit.recipe.finding import names as names
from flipkit.recipe.finding import summary as summary
from flipkit.recipe.making import dials as dials
from flipkit.recipe.making import make as make
from flipkit.recipe.making import resized as resized
from flipkit.recipe.tiny import TINY as TINY
from flipkit.recipe.tiny import scaled as scaled
