"""The receipt (langmerge.json) and the model card of a merge."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from langmerge.engine.plan import Plan
from langmerge.results import folder_signature, signature


def recipe_payload(plan: Plan) -> dict[str, Any]:
    """What decides the result, and nothing else: contents by hash, not by path."""
    return {
        "base": folder_signature(plan.base.folder),
        # A list, in the order of arithmetic: slerp between a and b at t is not slerp between b and a.
        "sources": [[name, folder_signature(checkpoint.folder)] for name, checkpoint in plan.sources.items()],
        "method": plan.recipe.method,
        "parameters": dict(plan.parameters),
        "coefficients": plan.coefficients.values,
        "embeddings": plan.recipe.embeddings,
        "head": plan.recipe.head,
        "dtype": plan.recipe.dtype,
        "langmerge": version("langmerge"),
    }


def receipt(plan: Plan, tensors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is needed to say how this model came about."""
    payload = recipe_payload(plan)
    merged = [entry["delta_norm"] ** 2 for entry in tensors if "delta_norm" in entry]
    source = [entry["mean_source_delta_norm"] ** 2 for entry in tensors if "delta_norm" in entry]
    dropped = [
        {"tensor": tensor.name, "treatment": "dropped", "reason": tensor.reason}
        for tensor in plan.tensors
        if tensor.treatment == "dropped"
    ]
    return {
        "format": "langmerge-receipt/1",
        "signature": signature(payload),
        "recipe": plan.recipe.model_dump(mode="json", exclude_none=True),
        "parameters": dict(plan.parameters),
        "target": plan.recipe.target,
        "hashes": {"base": payload["base"], "sources": dict(payload["sources"])},
        "label_rows_permuted": sorted(plan.orders),
        "labels": plan.labels,
        "versions": {
            "langmerge": version("langmerge"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "norm_ratio": round((sum(merged) / sum(source)) ** 0.5, 4) if sum(source) else None,
        "treatments": dict(Counter(entry["treatment"] for entry in [*tensors, *dropped])),
        "tensors": [*tensors, *dropped],
    }


def model_card(plan: Plan, record: dict[str, Any]) -> str:
    """A short README.md for the merged model."""
    rows = "\n".join(
        f"| {name} | {plan.coefficients.values['model'][name]:.4f} | `{record['hashes']['sources'][name]}` |"
        for name in plan.sources
    )
    target = f" for {plan.recipe.target}" if plan.recipe.target else ""
    return f"""---
library_name: transformers
tags: [merge, langmerge]
---
# Merged model{target}

Merged by [langmerge](https://pypi.org/project/langmerge/) {record["versions"]["langmerge"]}: method
`{plan.recipe.method}`, parameters `{record["parameters"]}`; signature `{record["signature"]}`.

| source | coefficient | hash |
|---|---|---|
{rows}

Norm of the merged delta over the mean norm of the sources' deltas: {record["norm_ratio"]}.
The treatment of every tensor is in `langmerge.json`. This card says how the model was made, not how well it does:
measure it with `langmerge evaluate` before use.
"""
