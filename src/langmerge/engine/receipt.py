"""The receipt (langmerge.json) and the model card of a merge."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langmerge import __version__
from langmerge.checkpoint import Checkpoint, checkpoint_signature
from langmerge.engine.plan import Plan, TensorPlan
from langmerge.results import signature

FORMAT = "langmerge-receipt/1"

Digests = Mapping[tuple[Path, str], str]


def recipe_payload(plan: Plan, digests: Digests | None = None) -> dict[str, Any]:
    """What decides the result, and nothing else: contents by hash, not by path.

    Args:
        plan: of the merge.
        digests: hashes of tensors that the merge has read, by file and name; the others are read for it.
    """
    # Where models are named by their folders, their places in the recipe take the names' stead.
    # Random masks are keyed by the names, so there they decide.
    named = bool(plan.coefficients) or any("seed" in tensor.parameters for tensor in plan.written)
    names = {name: name if named else str(place) for place, name in enumerate(plan.sources)}
    numbers = plan.coefficients.values if plan.coefficients else [_resolved(t, names) for t in plan.written]
    return {
        "base": _signed(plan.base, digests) if plan.base else None,
        # A list, in the order of arithmetic: slerp between a and b at t is not slerp between b and a.
        "sources": [[names[name], _signed(checkpoint, digests)] for name, checkpoint in plan.sources.items()],
        "method": plan.method,
        "parameters": dict(plan.parameters),
        "coefficients": numbers,
        **plan.settings,
        **(
            {"statistics": [[names[n], one.signature] for n, one in plan.statistics.items()]}
            if plan.statistics
            else {}
        ),
        "langmerge": __version__,
    }


def _resolved(tensor: TensorPlan, names: Mapping[str, str]) -> list[Any]:
    inputs = [[names[name], info.name] for name, info in zip(tensor.sources, tensor.inputs, strict=True)]
    decided = [tensor.name, tensor.dtype, tensor.treatment, tensor.method, dict(tensor.parameters)]
    return [*decided, list(tensor.weights), inputs, tensor.base.name if tensor.base else None]


def _signed(checkpoint: Checkpoint, digests: Digests | None) -> str:
    known = digests or {}
    places = {name: (info.file, name) for name, info in checkpoint.tensors.items()}
    return checkpoint_signature(checkpoint, {n: known[at] for n, at in places.items() if at in known})


def receipt(
    plan: Plan, tensors: Sequence[dict[str, Any]], digests: Digests | None = None, *, torch: bool = True
) -> dict[str, Any]:
    """Everything that is needed to say how this model came about, and to do it again.

    Args:
        plan: of the merge.
        tensors: what became of each.
        digests: as for `recipe_payload`.
        torch: has computed some of them.
    """
    if torch:
        # Half the start-up of a small merge is modules that it does not need.
        from importlib.metadata import version

    payload = recipe_payload(plan, digests)
    merged = [entry["delta_norm"] ** 2 for entry in tensors if "delta_norm" in entry]
    source = [entry["mean_source_delta_norm"] ** 2 for entry in tensors if "delta_norm" in entry]
    dropped = [
        {"tensor": tensor.name, "treatment": "dropped", "reason": tensor.reason}
        for tensor in plan.tensors
        if tensor.treatment == "dropped"
    ]
    return {
        "format": FORMAT,
        "signature": signature(payload),
        "recipe": dict(plan.recipe),
        "method": plan.method,
        "parameters": dict(plan.parameters),
        "target": plan.target,
        "hashes": {
            "base": payload["base"],
            "sources": {name: own for name, (_, own) in zip(plan.sources, payload["sources"], strict=True)},
            **(
                {"statistics": {n: s.signature for n, s in plan.statistics.items()}}
                if plan.statistics
                else {}
            ),
        },
        "label_rows_permuted": list(plan.permuted),
        "labels": plan.labels,
        **({"vocabulary": dict(plan.vocabulary)} if plan.vocabulary else {}),
        "versions": {
            "langmerge": __version__,
            "numpy": np.__version__,
            **({"torch": version("torch")} if torch else {}),
            "python": platform.python_version(),
        },
        "norm_ratio": round((sum(merged) / sum(source)) ** 0.5, 4) if sum(source) else None,
        "treatments": dict(Counter(entry["treatment"] for entry in [*tensors, *dropped])),
        "tensors": [*tensors, *dropped],
    }


def model_card(plan: Plan, record: dict[str, Any]) -> str:
    """A short README.md for the merged model."""
    numbers = plan.coefficients.values["model"] if plan.coefficients else {}
    rows = "\n".join(
        f"| {name} | {f'{numbers[name]:.4f}' if name in numbers else 'by tensor'} | `{record['hashes']['sources'][name]}` |"
        for name in plan.sources
    )
    target = f" for {plan.target}" if plan.target else ""
    return f"""---
library_name: transformers
tags: [merge, langmerge]
---
# Merged model{target}

Merged by [langmerge](https://pypi.org/project/langmerge/) {record["versions"]["langmerge"]}: method
`{plan.method}`, parameters `{record["parameters"]}`; signature `{record["signature"]}`.

| source | coefficient | hash |
|---|---|---|
{rows}

Norm of the merged delta over the mean norm of the sources' deltas: {record["norm_ratio"]}.
The treatment of every tensor is in `langmerge.json`. This card says how the model was made, not how well it does:
measure it with `langmerge evaluate` before use.
"""
