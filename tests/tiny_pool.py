"""A pool of four small trained experts, its measured dev matrix, and a fifth locale without an expert."""

import json
from pathlib import Path

from langmerge.evaluate import PoolEvaluator, transfer_matrix
from langmerge.pool import Pool
from langmerge.tasks import load_task
from langmerge.training import Training, train_pool
from tests.experiments.conftest import write_task
from tests.tiny_encoder import write_tiny_encoder

EXPERTS = ("de-DE", "en-US", "fr-FR", "sw-KE")
ABSENT = "cy-GB"


def write_tiny_pool(root: Path) -> Pool:
    """Write task, encoder, pool and dev matrix below a folder."""
    text = write_task(root / "text")
    # Parallel to the others: Swahili's rows with their words turned round.
    (text / ABSENT).mkdir()
    for file in (text / "sw-KE").iterdir():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        turned = [{**row, "text": " ".join(reversed(row["text"].split()))} for row in rows]
        write_rows(text / ABSENT / file.name, turned)
    task = load_task(f"folder:{text}")
    training = Training(epochs=2, lr=5e-3, head_lr=2e-2, batch_size=8)
    base = write_tiny_encoder(root / "encoder")
    pool = train_pool(root / "pool", base=base, task=task, locales=EXPERTS, training=training)
    transfer_matrix(PoolEvaluator(pool, task))
    return pool


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task_folder(pool: Pool) -> Path:
    """Where the text of such a pool is."""
    return Path(pool.task.removeprefix("folder:"))
