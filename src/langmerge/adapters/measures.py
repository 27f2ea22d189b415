"""How far a language moves an adapter, in numbers: by module, by layer, over all."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_LAYER = re.compile(r"\.(\d+)\.")


def by_layer(said: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """‖P2 − P3‖ / ‖P1‖ and the cosine for each layer; modules without a layer's number stand last."""
    places = {name: one for found in said.values() for name, one in found.get("places", {}).items()} or said
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, one in places.items():
        number = layer_of(name)
        groups.setdefault(name if number is None else str(number), []).append(one)
    ordered = sorted(
        groups, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )
    return {name: totals(groups[name]) for name in ordered}


def layer_of(module: str) -> int | None:
    """The number of the layer that a module lies in.

    >>> layer_of("roberta.encoder.layer.3.attention.self.query"), layer_of("classifier")
    (3, None)
    """
    number = _LAYER.search(f"{module}.")
    return int(number[1]) if number else None


def totals(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Norms over several modules: squares add up, and so do inner products."""
    rows = list(found)
    task, moved = (math.sqrt(sum(row[key] ** 2 for row in rows)) for key in ("task", "divergence"))
    dot = sum(row["cosine"] * row["task"] * row["divergence"] for row in rows)
    made = {
        "ratio": moved / task if task else None,
        "cosine": dot / (task * moved) if task * moved else 0.0,
    }
    if any("lost" in row for row in rows):
        lost, merged = (math.sqrt(sum(row.get(key, 0.0) ** 2 for row in rows)) for key in ("lost", "merged"))
        made["error"] = lost / merged if merged else 0.0
    if any("clipped" in row for row in rows):
        made["clipped"] = sum(row.get("clipped", 0) for row in rows)
    return made


def measured(own: Tensor, moved: Tensor) -> tuple[float, float, float]:
    """‖own‖, ‖moved‖ and the cosine between them, 0 where one is zero."""
    x, y = own.double().flatten(), moved.double().flatten()
    size = float(x.norm() * y.norm())
    return float(x.norm()), float(y.norm()), float(x @ y) / size if size else 0.0


def said_of(task: float, divergence: float, cosine: float) -> dict[str, Any]:
    """What is kept of a module: ‖P1‖, ‖P2 − P3‖, and the cosine between them."""
    return {"task": task, "divergence": divergence, "cosine": cosine}
