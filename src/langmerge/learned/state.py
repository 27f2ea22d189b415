"""Where learning stands, as a small file: a run that ended early goes on from there to the same bytes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from langmerge.errors import InputError
from langmerge.files import replace_text

FORMAT = "langmerge-learning/1"

Table = list[list[float]]


@dataclass
class Moment:
    """One look at the run.

    Attributes:
        step: optimiser steps taken.
        loss: mean of the steps since the last look, without the anchor; None before the first step.
        held_out: loss on the held-out rows; None without them.
        coefficients: (groups, sources).
    """

    step: int
    loss: float | None
    held_out: float | None
    coefficients: Table


@dataclass
class State:
    """After a whole step.

    Attributes:
        run: signature of what decides the result.
        step: optimiser steps taken.
        free: the numbers that are moved, (groups, sources).
        first: Adam's mean of gradients.
        second: Adam's mean of squares.
        losses: of the steps since the last look.
        history: the looks.
        ended: whether it has ended before the last step, by patience.
    """

    run: str
    step: int
    free: Table
    first: Table
    second: Table
    losses: list[float] = field(default_factory=list)
    history: list[Moment] = field(default_factory=list)
    ended: bool = False

    def save(self, path: Path) -> None:
        """Write, whole or not at all; numbers come back bit for bit."""
        replace_text(path, json.dumps({"format": FORMAT, **asdict(self)}) + "\n")

    @classmethod
    def load(cls, path: Path, run: str) -> "State | None":
        """The state of this run; None where there is none.

        Raises:
            InputError: the file is another run's, or cannot be read.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): delete it to begin anew") from None
        if raw.pop("format", None) != FORMAT or raw.get("run") != run:
            raise InputError(
                f"{path} is what another run has left (other settings, models or text): "
                "repeat that run, delete the file to begin anew, or choose another output"
            )
        history = [Moment(**one) for one in raw.pop("history")]
        return cls(**raw, history=history)
