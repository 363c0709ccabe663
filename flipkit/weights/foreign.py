"""Foreign configs, read key by key: `Config.close` rejects by name every key that nobody read."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from flipkit import files
from flipkit.errors import ConfigurationError
from flipkit.preprocessing import STATISTICS, Preprocessing
from flipkit.weights.tensors import refuse

MOST_LAYERS = 1_000  # of a tower; a config with more is damaged
INTERPOLATIONS = ("bilinear", "bicubic")  # which every format can express


class Config:
    """A section of a foreign config.

    The reader has to take, require or ignore every key before `close`: an unknown key might change the
    numbers.
    """

    def __init__(self, values, source: str, name: str = ""):
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"Expected a table of settings in {source}{name and f': {name}'}."
            )
        self.source, self.name = source, name
        self._left, self._problems = dict(values), []

    def take(self, key: str, default: Any = None) -> Any:
        """The value of `key`; `default` where there is none or a null."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def require(self, key: str, *allowed) -> Any:
        """As `take` with the first of `allowed` as default; another value is a problem."""
        value = self.take(key, allowed[0])
        if value not in allowed:
            known = " or ".join(repr(a) for a in allowed)
            self._problems.append(f"{self.name}{key}={value!r}; flipkit supports {known}")
        return value

    def whole(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """An integer from 1 to `most`."""
        value = self.take(key, default)
        if type(value) is not int or not 1 <= value <= most:
            self._problems.append(
                f"{self.name}{key}={value!r}; expected an integer from 1 to {most}"
            )
            self.close()
        return value

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        return self.numbers(key, (default,), single=True)[0]

    def numbers(self, key: str, default: Sequence[float], single: bool = False) -> list[float]:
        """As many numbers from 0 up as in `default`; `single` is one above 0, outside a list."""
        value = self.take(key, default[0] if single else list(default))
        values = [value] if single else value
        right = isinstance(values, list) and len(values) == len(default)
        right = right and all(type(v) in (int, float) and 0 <= v < math.inf for v in values)
        if not right or (single and not value):
            expected = "a number above 0" if single else f"{len(default)} numbers"
            self._problems.append(f"{self.name}{key}={value!r}; expected {expected}")
            self.close()
        return values

    def choice(self, key: str, default: str, known: dict[str, Any]) -> Any:
        """What `known` has under the value of `key`."""
        value = self.require(key, default, *(k for k in known if k != default))
        return known.get(value) if isinstance(value, str) else None

    def ignore(self, *keys: str):
        """Skips keys that change no number of the model."""
        for key in keys:
            self._left.pop(key, None)

    def rest(self) -> dict:
        """The values that nobody has read."""
        left, self._left = self._left, {}
        return left

    def section(self, key: str, default=None) -> "Config":
        """The table under `key`."""
        return Config(self.take(key, default), self.source, f"{self.name}{key}.")

    def close(self):
        """Raises ConfigurationError for every key left and every value that flipkit doesn't support."""
        unknown = [f"{self.name}{key}={value!r}: unknown" for key, value in self._left.items()]
        refuse(self._problems + unknown, f"{self.source} has settings that flipkit can't express")


def read_json(path: pathlib.Path) -> dict:
    """The table in a JSON file."""
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Can't read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"Expected a table of settings in {path}.")
    return found


def write_json(values: dict, path: pathlib.Path):
    """Writes a table as JSON."""
    files.write_json(path, values, indent=2)


def preprocessing(
    mean, std, interpolation: str, resize_mode: str, rule: str = "flipkit"
) -> Preprocessing:
    """A Preprocessing of a foreign config's values; known statistics become their name."""
    names = [name for name, known in STATISTICS.items() if known == (tuple(mean), tuple(std))]
    statistics: Any = (names[0], None) if names else (list(mean), list(std))
    how = {"interpolation": interpolation, "resize_mode": resize_mode, "rule": rule}
    return Preprocessing(*statistics, **how)
