"""Lists of named checks of a component, which the tests of a plugin run.

    import flipkit.testing
    import pytest
    from my_plugin import BlockMasker

    @pytest.mark.parametrize("check", flipkit.testing.check_masker(BlockMasker), ids=str)
    def test_block_masker(check):
        check()

Each `check_...` takes a class or a function without arguments that returns the component, at a size that
is quick to run. `expected_failures={"draws_rows_alone": "clusters the whole batch"}` declares a check that
the component fails on purpose, and the reason. Such a check is skipped while it fails, and fails once it
passes. `check.slow` is true of a check that takes seconds, so that a test can mark it. `run` returns the
outcomes of checks without a test runner.
"""

from flipkit.testing.check import Check, CheckFailed, Outcome, run
from flipkit.testing.datasets import check_dataset
from flipkit.testing.encoders import check_encoder
from flipkit.testing.maskers import check_masker
from flipkit.testing.models import check_model
from flipkit.testing.schedules import check_schedule
from flipkit.testing.tokenizers import check_tokenizer

__all__ = [
    "Check",
    "CheckFailed",
    "Outcome",
    "check_dataset",
    "check_encoder",
    "check_masker",
    "check_model",
    "check_schedule",
    "check_tokenizer",
    "run",
]
