"""A journal of evaluations: one line each, appended as they are made, so that nothing is evaluated twice."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langmerge.errors import InputError, OutputError

FORMAT = "langmerge-search-journal/1"

Numbers = tuple[float, ...]


class Journal:
    """Scores by the exact numbers they were found with.

    Args:
        path: the file, made if it is not there; None keeps the scores in memory only.
        head: what decides the scores and their order, as JSON can hold it.

    Raises:
        InputError: the file has another head, or is no journal.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any]) -> None:
        self._path = path
        self._scores: dict[Numbers, float] = {}
        if path is None:
            return
        first = json.dumps({"format": FORMAT, **head}, ensure_ascii=False)
        if path.exists():
            self._read(path, first)
        else:
            self._append(first)

    def __contains__(self, numbers: Sequence[float]) -> bool:
        return tuple(numbers) in self._scores

    def __getitem__(self, numbers: Sequence[float]) -> float:
        return self._scores[tuple(numbers)]

    def add(self, numbers: Sequence[float], score: float) -> None:
        """Keep one score; NaN is one too."""
        self._scores[tuple(numbers)] = score
        # repr of a float is read back as the same float.
        self._append(json.dumps({"x": list(numbers), "score": None if math.isnan(score) else score}))

    def _append(self, line: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}") from None

    def _read(self, path: Path, first: str) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"journal {path} cannot be read: {error}") from None
        *lines, torn = text.split("\n")
        if not lines or lines[0] != first:
            raise InputError(
                f"journal {path} is of another search (other sources, start, settings or data): "
                "remove it, or choose another output"
            )
        for number, line in enumerate(lines[1:], 2):
            try:
                entry = json.loads(line)
                score = math.nan if entry["score"] is None else float(entry["score"])
                self._scores[tuple(float(x) for x in entry["x"])] = score
            except (ValueError, KeyError, TypeError):
                raise InputError(f"journal {path}, line {number} is broken: remove the file") from None
        if torn:
            # A line that was being written when the machine stopped.
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
