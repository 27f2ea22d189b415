"""What a recipe may give for one parameter of a method: type, range, words."""

import math
from dataclasses import dataclass
from typing import Any

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        default: also says the type; None means a real number that may be left out.
        low: smallest value.
        high: largest value.
        open_low: `low` itself is not allowed.
        open_high: `high` itself is not allowed.
        choices: the words allowed, for a text.
        per_source: a list with one number for every source may be given in place of a number.
    """

    default: Value
    low: int | float = -math.inf
    high: int | float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    per_source: bool = False

    @property
    def range(self) -> str:
        """The range in words: `it must lie in (0, 1]`."""
        if self.choices:
            return f"it must be {' or '.join(repr(choice) for choice in self.choices)}"
        if math.isinf(self.low):
            return "it must be finite"
        if self.high == math.inf:
            return f"it must be {'above' if self.open_low else 'at least'} {self.low:g} and finite"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"it must lie in {left}{self.low:g}, {self.high:g}{right}"

    def allows(self, value: Any) -> bool:
        """Whether one value (of the right type) lies in the range; NaN and infinity never do."""
        if self.choices:
            return value in self.choices
        if value is None or isinstance(value, bool | str):
            return True
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return bool(math.isfinite(value) and above and below)
