"""A study that takes seconds: a tiny encoder, four locales that order their words differently."""

import json
import random
from pathlib import Path

import pytest

from langmerge.experiments import Grid, run_sweep
from langmerge.results import Study
from tests.tiny_encoder import WORDS, write_tiny_encoder

LABELS = {"alarm": WORDS[:3], "music": WORDS[3:6], "weather": WORDS[6:9]}
ROWS = {"train": 48, "dev": 24, "test": 60}
# The share of words that come from the row's own label: how hard a locale is.
EASE = {"en-US": 0.9, "de-DE": 0.8, "fr-FR": 0.7, "sw-KE": 0.6}


def write_task(folder: Path) -> Path:
    """A folder task with parallel ids."""
    for locale, ease in EASE.items():
        (folder / locale).mkdir(parents=True)
        for split, count in ROWS.items():
            draw = random.Random(f"{locale} {split}")
            with (folder / locale / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for i in range(count):
                    label = list(LABELS)[i % 3]
                    words = [
                        draw.choice(LABELS[label] if draw.random() < ease else WORDS)
                        for _ in range(draw.randint(2, 5))
                    ]
                    row = {"id": f"{split}-{i}", "text": " ".join(words), "label": label}
                    file.write(json.dumps(row) + "\n")
    return folder


def tiny_grid(folder: Path, **changes: object) -> Grid:
    """Every method, both modes."""
    fields = {
        "task": f"folder:{write_task(folder / 'text') if not (folder / 'text').exists() else folder / 'text'}",
        "base": str(
            write_tiny_encoder(folder / "encoder")
            if not (folder / "encoder").exists()
            else folder / "encoder"
        ),
        "sources": ["en-US", "de-DE", "fr-FR"],
        "targets": ["sw-KE"],
        "training": {"epochs": 4, "batch_size": 8, "lr": 5e-3, "head_lr": 2e-2},
        "k": [2, "all"],
        "modes": ["ExcTar", "IncTar"],
        "methods": [
            {"method": "linear"},
            {"method": "linear", "weights": "softmax"},
            {"method": "ties", "parameters": {"scope": "model"}},
            {"method": "slerp"},
            {"method": "wudi"},
        ],
    }
    return Grid.model_validate({**fields, **changes})


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny study was run."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="session")
def study(study_folder: Path) -> Study:
    """The tiny study."""
    found = run_sweep(tiny_grid(study_folder), study_folder / "out")
    assert found.failed == ()
    return found.studies[0]
