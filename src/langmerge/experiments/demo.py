"""The grid of `langmerge demo`: the embedded corpus, seven experts, two targets, minutes on two cores."""

from langmerge.experiments.grid import Grid

DEMO_GRID = Grid.model_validate(
    {
        "task": "demo:intent",
        "base": "e5-small",
        "sources": ["en-US", "fr-FR", "tr-TR", "id-ID", "hi-IN"],
        "targets": ["sw-KE", "cy-GB"],
        "training": {"epochs": 8, "batch_size": 16},
        "k": [3, "all"],
        "ensembles": ["soft_vote"],
        "methods": [
            {"method": "linear"},
            {"method": "linear", "weights": "softmax"},
            {"method": "ties", "parameters": {"density": 0.2}},
            {"method": "dare_ties", "parameters": {"density": 0.5}},
            {"method": "directional_consensus", "parameters": {"alpha": 0.5}},
            {"method": "slerp"},
            {"method": "wudi"},
        ],
    }
)
