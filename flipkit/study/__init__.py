"""Studies: a recipe trained with several settings and seeds for equal time, samples or FLOPs."""

from flipkit.study.pace import TOLERANCE as TOLERANCE
from flipkit.study.pace import uneven as uneven
from flipkit.study.results import Result as Result
from flipkit.study.results import Variant as Variant
from flipkit.study.results import check_metric as check_metric
from flipkit.study.results import summary as summary
from flipkit.study.results import variants as variants
from flipkit.study.study import BUDGETS as BUDGETS
from flipkit.study.study import PROBE_PAIRS as PROBE_PAIRS
from flipkit.study.study import Study as Study
from flipkit.study.values import seeds_of as seeds_of
from flipkit.study.values import split_values as split_values
