"""Whole models by the same rule, θ1 + t (θ2 − θ3): as a recipe, so that it streams and leaves a receipt."""

from pathlib import Path

from langmerge.checkpoint import folder_signature
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


def transfer_model(
    out: Path,
    *,
    task_source: Path,
    reference_target: Path,
    reference_source: Path,
    t: float = 1.0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write θ1 + t (θ2 − θ3); see `langmerge.engine.merge` for what it raises."""
    recipe = transfer_recipe(task_source, reference_target, reference_source, t)
    return merge(recipe, out, overwrite=overwrite, progress=progress)
