"""What a component must do to fit, as lists of named checks: the tests of a plugin run them.

    import flipkit.testing
    import pytest
    from my_plugin import BlockMasker

    @pytest.mark.parametrize("check", flipkit.testing.check_masker(BlockMasker), ids=str)
    def test_block_masker(check):
        check()

Each `check_...` takes what makes the component: a class or a function without arguments, at a size that
is quick to run. What a component fails on purpose is named with its reason,
`expected_failures={"draws_rows_alone": "clusters the whole batch"}`: it is then skipped while it fails, and
fails once it passes. `check.slow` tells those that take seconds, for a mark of your own. `run` gives the
outcome of all of them without a test runner.
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
