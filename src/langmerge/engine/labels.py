"""Label maps, matched by name: row 3 of two heads is the same label only if both maps say so."""

import re
from collections.abc import Mapping

import numpy as np

from langmerge.checkpoint import Checkpoint, label_names

# The last layer of a classification head: its rows are labels. (XLM-R's classifier.dense is not.)
_LABEL_ROWS = re.compile(
    r"^(?:(?:classifier|classification_head|score|cls)\.)?"
    r"(?:out_proj|classifier|score|decoder|logits_proj|linear_out)\.(?:weight|bias)$"
)


def is_label_row(name: str) -> bool:
    """Whether a tensor's first axis is labels.

    >>> is_label_row("classifier.out_proj.weight"), is_label_row("classifier.dense.weight")
    (True, False)
    """
    return bool(_LABEL_ROWS.match(name))


def label_orders(
    base: Checkpoint | None, sources: Mapping[str, Checkpoint], faults: list[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """For every source whose label map differs from the reference, the row that holds each reference label.

    Args:
        base: the base if it has a head, else None.
        sources: the sources, in order.
        faults: what is wrong is added here: different label sets, with the differences.

    Returns:
        Row orders by source (only where they differ), and the reference map: the base's, or the first source's.
    """
    maps = {name: label_names(checkpoint.config) for name, checkpoint in sources.items()}
    named = {name: labels for name, labels in maps.items() if labels is not None}
    reference = label_names(base.config) if base else None
    holder = f"the base {base.folder}" if base else ""
    if reference is None and named:
        holder, reference = next(iter(named.items()))
        if base is not None:
            faults.append(
                f"the base {base.folder} has a head without label names while {holder} names its labels: "
                "give the base the same id2label, or use a base without a head"
            )
    if reference is None:
        return {}, None
    orders = {}
    for name, labels in maps.items():
        if labels is None:
            faults.append(
                f"source {name} ({sources[name].folder}) has no label names in config.json (id2label), {holder} has"
            )
        elif len(set(labels)) < len(labels):
            faults.append(
                f"source {name} ({sources[name].folder}) names a label twice in config.json (id2label)"
            )
        elif set(labels) != set(reference):
            faults.append(
                f"source {name} and {holder} have different labels: {_differences(labels, reference)}"
            )
        elif labels != reference:
            orders[name] = np.array([labels.index(label) for label in reference])
    return orders, reference


def _differences(labels: tuple[str, ...], reference: tuple[str, ...]) -> str:
    more, fewer = sorted(set(labels) - set(reference)), sorted(set(reference) - set(labels))
    parts = [
        f"{sign} {', '.join(some[:8])}{' …' if len(some) > 8 else ''}"
        for sign, some in (("only there:", more), ("missing:", fewer))
        if some
    ]
    return "; ".join(parts)
