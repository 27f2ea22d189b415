"""The recipes that mergekit's vectors were made of.

Shared by the test and by `scripts/make_mergekit_vectors.py`, which runs in mergekit's environment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A recipe and what may differ.

    Attributes:
        recipe: for models in folders beside it.
        keep: substrings of the tensors that are stored; all where empty.
        steps: how many steps of the stored dtype an entry may be off, measured at the tensor's largest entry.
        strays: share of entries that may differ by more: see `OFF`.
    """

    recipe: Mapping[str, Any]
    keep: tuple[str, ...] = ()
    steps: float = 3.0
    strays: float = 0.0


def _models(kind: str, names: str, **each: Sequence[Any]) -> list[dict[str, Any]]:
    found = []
    for place, name in enumerate(names):
        own = {key: values[place] for key, values in each.items()}
        found.append({"model": f"{kind}/{name}", **({"parameters": own} if own else {})})
    return found


def _recipe(
    method: str, kind: str = "llama", names: str = "abc", *, base: bool = True, **more: Any
) -> dict[str, Any]:
    each = more.pop("each", {})
    found = {"merge_method": method, "models": _models(kind, names, **each), **more}
    return {**found, "base_model": f"{kind}/base"} if base else found


THREE = {"weight": [0.5, 0.3, 0.4]}
TRIMMED = {**THREE, "density": [0.5, 0.3, 0.8]}
DENSE = {**THREE, "density": [1.0, 1.0, 1.0]}
HALF = [{"filter": "self_attn", "value": 0.2}, {"filter": "mlp", "value": 0.9}, {"value": 0.5}]


def _method_cases(kind: str) -> dict[str, Mapping[str, Any]]:
    """Every deterministic method once."""
    return {
        "linear": _recipe("linear", kind, each=THREE, base=False),
        "linear unnormalized": _recipe("linear", kind, each=THREE, base=False, parameters={"normalize": False}),
        "task_arithmetic": _recipe("task_arithmetic", kind, each=THREE, parameters={"lambda": 1.3}),
        "task_arithmetic normalized": _recipe("task_arithmetic", kind, each=THREE, parameters={"normalize": True}),
        "ties": _recipe("ties", kind, each=TRIMMED, parameters={"lambda": 0.7, "int8_mask": True}),
        "ties unnormalized": _recipe("ties", kind, each=TRIMMED, parameters={"normalize": False}),
        "dare_linear at density 1": _recipe("dare_linear", kind, each=DENSE),
        "dare_ties at density 1": _recipe("dare_ties", kind, each=DENSE),
        "della at density 1": _recipe("della", kind, each=DENSE),
        "della_linear at density 1": _recipe("della_linear", kind, each=DENSE),
        "breadcrumbs": _recipe("breadcrumbs", kind, each=TRIMMED, parameters={"gamma": 0.05}),
        "breadcrumbs_ties": _recipe("breadcrumbs_ties", kind, each=TRIMMED, parameters={"gamma": 0.05}),
        "slerp": _recipe("slerp", kind, "a", parameters={"t": 0.3}),
        "multislerp": _recipe("multislerp", kind, each=THREE),
        "multislerp without base": _recipe("multislerp", kind, each=THREE, base=False),
        "karcher": _recipe("karcher", kind, base=False),
        "nuslerp": _recipe("nuslerp", kind, "ab", each={"weight": [0.7, 0.2]}),
        "nuslerp without base": _recipe("nuslerp", kind, "ab", each={"weight": [0.7, 0.2]}, base=False),
        "nuslerp by rows": _recipe(
            "nuslerp", kind, "ab", each={"weight": [0.7, 0.2]}, parameters={"nuslerp_flatten": False}
        ),
        "nuslerp by columns": _recipe(
            "nuslerp", kind, "ab", each={"weight": [0.7, 0.2]},
            parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
        ),
        "model_stock": _recipe("model_stock", kind),
        "model_stock by filter": _recipe("model_stock", kind, parameters={"filter_wise": True}),
        "nearswap": _recipe("nearswap", kind, "a", parameters={"t": 0.02}),
        "passthrough": _recipe(
            "passthrough", kind, "a", base=False, each={"scale": [[{"filter": "down_proj", "value": 0.5}, {"value": 1}]]}
        ),
        "sce": _recipe("sce", kind),
        "sce selecting": _recipe("sce", kind, parameters={"select_topk": 0.4}),
        "ram": _recipe("ram", kind),
        "ramplus_tl": _recipe("ramplus_tl", kind, parameters={"r": 0.3, "alpha": 0.4}),
        "arcee_fusion": _recipe("arcee_fusion", kind, "a"),
    }  # fmt: skip


def _granular_cases() -> dict[str, Mapping[str, Any]]:
    """Filters, gradients, precedence, base among the models, stored dtypes."""
    graded = [[0.1, 0.9], [1, 0, 0.5], 0.4]
    filtered = [HALF, 0.3, [{"filter": "layers.1", "value": [1.0, 0.0]}, {"filter": "*", "value": 0.6}]]
    with_base = _recipe("task_arithmetic", "deep", "ab", each={"weight": graded[:2]})
    with_base["models"].insert(1, {"model": "deep/base"})
    nearer = _recipe("ties", "deep", each={"weight": [0.5, 0.3, [{"filter": "mlp", "value": 0.9}]]})
    nearer["parameters"] = {
        "weight": [{"filter": "norm", "value": 0.25}, {"value": 0.1}],
        "density": [0.2, 0.8],
    }
    return {
        "gradients": _recipe("linear", "deep", each={"weight": graded}, base=False),
        "filters": _recipe("linear", "deep", each={"weight": filtered}, base=False),
        "base among the models": with_base,
        "a model before the whole": nearer,
        "a linear merge with base_model": _recipe("linear", "llama", "ab", parameters={"weight": 0.3}),
        "slerp with filtered gradients": _recipe(
            "slerp", "deep", "a",
            parameters={"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.5}]},
        ),
        "switch with a gradient": _recipe("ties", "deep", each=TRIMMED, parameters={"normalize": [True, False]}),
        "stored as bfloat16": _recipe("linear", each=THREE, base=False, out_dtype="bfloat16"),
        "stored as float16": _recipe("task_arithmetic", each=THREE, dtype="float32", out_dtype="float16"),
        "computed in bfloat16": _recipe("task_arithmetic", each=THREE, dtype="bfloat16"),
        "read as float32": _recipe("ties", "qwen2", each=TRIMMED, dtype="float32", out_dtype="bfloat16"),
        "widened": _recipe("linear", "qwen2", each=THREE, base=False, dtype="float32"),
    }  # fmt: skip


def _slice(*sources: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    return {"sources": [{"model": model, "layer_range": [low, high]} for model, low, high in sources], **more}


def _slice_cases() -> dict[str, Mapping[str, Any]]:
    """Layers stacked and merged."""
    weighted = _slice(("deep/a", 0, 3), ("deep/b", 1, 4), parameters={"weight": [0.2, 0.8]})
    weighted["sources"][0]["parameters"] = {
        "weight": [{"filter": "layers.2", "value": 0.9}, {"filter": "mlp", "value": 0.1}]
    }
    own_base = _slice(("deep/b", 0, 2), ("deep/c", 2, 4), base_model="deep/c", parameters={"t": [0.25, 0.5]})
    return {
        "layers stacked": {
            "merge_method": "passthrough",
            "slices": [_slice(("deep/a", 0, 3)), _slice(("deep/b", 1, 4)), _slice(("deep/c", 3, 4))],
            "dtype": "float32",
        },
        "slices merged": {
            "merge_method": "linear",
            "slices": [weighted, _slice(("deep/c", 2, 4), ("deep/a", 0, 2), parameters={"weight": 1.0})],
        },
        "a base for each slice": {
            "merge_method": "slerp", "base_model": "deep/a", "parameters": {"t": 0.75},
            "slices": [_slice(("deep/a", 0, 2), ("deep/b", 0, 2)), own_base],
        },
    }  # fmt: skip


def _vocabulary_cases() -> dict[str, Mapping[str, Any]]:
    """Tokenizers and tied heads."""
    two = {"each": {"weight": [0.6, 0.4]}}
    mixed = {
        "models": [
            *_models("llama", "a", weight=[0.6]),
            {"model": "llama/other", "parameters": {"weight": 0.4}},
        ]
    }
    tied = {
        "models": [
            *_models("llama", "a", weight=[0.6]),
            {"model": "llama/tied", "parameters": {"weight": 0.4}},
        ]
    }
    base = {"base_model": "llama/base"}
    return {
        "tokenizer of the base": {"merge_method": "task_arithmetic", **mixed, **base, "tokenizer_source": "base"},
        "tokenizer of the base, which is a source": {
            "merge_method": "linear", "models": [{"model": "llama/other"}, {"model": "llama/b"}], **base,
            "parameters": {"weight": [{"filter": "embed", "value": 0.25}, {"value": 1}]}, "tokenizer_source": "base",
        },
        "tokenizer of a model": {"merge_method": "task_arithmetic", **mixed, **base, "tokenizer_source": "llama/other"},
        "union of tokenizers": {"merge_method": "linear", **mixed, "tokenizer_source": "union"},
        "union with a base": {"merge_method": "ties", **mixed, **base, "tokenizer_source": "union"},
        "one tied head": {"merge_method": "linear", **tied},
        "tied heads": _recipe("task_arithmetic", "qwen2", "ab", **two),
        "chat template": _recipe("linear", "llama", "ab", base=False, chat_template="{{ messages[0]['content'] }}", **two),
        "chat template of most": {
            "merge_method": "linear", "chat_template": "auto", "parameters": {"weight": 1},
            "models": [{"model": "llama/a"}, {"model": "llama/chat"}],
        },
    }  # fmt: skip


KEPT = ("layers.1.", "norm.weight", "lm_head")
OFF: dict[str, dict[str, float]] = {
    # Each rounding of mergekit's in bfloat16 is a step, ours is one at the end; units are short beside the whole.
    "qwen2, ties unnormalized": {"steps": 8},
    "qwen2, karcher": {"steps": 12},
    # Two magnitudes or variances that are equal in bfloat16: which of them is kept is mergekit's chance.
    "qwen2, breadcrumbs": {"strays": 0.005},
    "qwen2, breadcrumbs_ties": {"strays": 0.005},
    "qwen2, sce selecting": {"strays": 0.01},
    # The threshold comes from softmaxes in bfloat16.
    "qwen2, arcee_fusion": {"strays": 0.12},
    # mergekit keeps none of 3 entries at density 0.3; at least one is kept here.
    "xlmr, breadcrumbs_ties": {"strays": 0.002},
}
"""Where a result may be further off than by the last rounding, and why; measured, then rounded up."""


def cases() -> dict[str, Case]:
    """Every recipe by name, with what is stored of it and how exactly it must agree."""
    kept = {
        f"{kind}, {name}": (recipe, KEPT)
        for kind in ("llama", "qwen2")
        for name, recipe in _method_cases(kind).items()
    }
    for name in (
        "linear",
        "task_arithmetic",
        "ties",
        "slerp",
        "multislerp",
        "model_stock",
        "breadcrumbs_ties",
        "sce",
    ):
        kept[f"xlmr, {name}"] = (
            _method_cases("xlmr")[name],
            ("embeddings.LayerNorm", "layer.1.", "classifier"),
        )
    for name, recipe in _granular_cases().items():
        kept[name] = (recipe, ("q_proj", "norm", "mlp.up_proj", "lm_head"))
    for name, recipe in (_slice_cases() | _vocabulary_cases()).items():
        kept[name] = (recipe, ("q_proj", "k_proj.bias", "norm", "embed_tokens", "lm_head"))
    return {name: Case(recipe, keep, **OFF.get(name, {})) for name, (recipe, keep) in kept.items()}
