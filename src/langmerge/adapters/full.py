"""Whole models by the same rule, θ1 + t (θ2 − θ3): as a recipe, so that it streams and leaves a receipt."""

from pathlib import Path
from typing import Any

from langmerge.adapters.moving import transfer_adapter
from langmerge.adapters.three import Transfer
from langmerge.checkpoint import ADAPTER_CONFIG, folder_signature, read_json
from langmerge.coefficients import Coefficients
from langmerge.engine import merge
from langmerge.errors import InputError
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe


def transfer_recipe(task_source: Path, reference_target: Path, reference_source: Path, t: float) -> Recipe:
    """The recipe: θ1 is the base, so that t (θ2 − θ1) − t (θ3 − θ1) is added to it; its head is kept.

    Raises:
        InputError: t is 0, or the references are the same.
        CheckpointError: a reference cannot be read.
    """
    if t == 0:
        raise InputError(f"t = 0 leaves {task_source} as it is: there is nothing to merge")
    if folder_signature(reference_target) == folder_signature(reference_source):
        raise InputError(
            f"{reference_target} and {reference_source} are the same: nothing would be transferred to {task_source}"
        )
    row = {"reference_target": t, "reference_source": -t}
    return Recipe(
        base=task_source,
        sources={"reference_target": reference_target, "reference_source": reference_source},
        method="task_arithmetic",
        coefficients=Coefficients(values={"model": row}),
        head="base",
    )


def transfer(
    out: Path,
    *,
    task_source: Path,
    reference_target: Path,
    reference_source: Path,
    asked: Transfer | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Move a task to another language: adapters by `transfer_adapter`, whole models by `transfer_recipe`.

    Args:
        out: the new folder.
        task_source: θ1 or P1: the task in the source language.
        reference_target: θ2 or P2: a reference task in the target language.
        reference_source: θ3 or P3: the reference task in the source language.
        asked: settings; of whole models t alone.
        overwrite: replace `out`.
        progress: told of modules or tensors.

    Returns:
        The record beside the result: of adapters see `transfer_adapter`, of models the merge's receipt.

    Raises:
        InputError: settings of adapters for whole models; and see `transfer_adapter` and `langmerge.engine.merge`.
    """
    asked, folders = asked or Transfer(), (task_source, reference_target, reference_source)
    if any((one / ADAPTER_CONFIG).is_file() for one in folders) or not all(
        (one / "config.json").is_file() for one in folders
    ):
        return transfer_adapter(
            out,
            task_source=task_source,
            reference_target=reference_target,
            reference_source=reference_source,
            asked=asked,
            overwrite=overwrite,
            progress=progress,
        )
    if asked != Transfer(t=asked.t):
        raise InputError(
            f"{task_source} is a whole model: mode, rank, clip, dtype and same_base are for adapters"
        )
    recipe = transfer_recipe(task_source, reference_target, reference_source, asked.t)
    return read_json(merge(recipe, out, overwrite=overwrite, progress=progress) / "langmerge.json")
