"""Lets the tests import the module where it is not installed."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
