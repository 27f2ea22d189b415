"""Did merging help? One plain sentence for each target."""

from collections.abc import Sequence

from langmerge.errors import DataError
from langmerge.experiments.references import TargetBoard
from langmerge.results.study import Difference, Row, Verdict


def verdict(board: TargetBoard, merges: Sequence[Row], mode: str) -> Verdict:
    """The merge that is best on dev, judged on test against the reference.

    Args:
        board: the target's measurements.
        merges: its merges.
        mode: ExcTar or IncTar.

    Raises:
        DataError: there is no merge of this mode.
    """
    own = [row for row in merges if row.mode == mode]
    if not own:
        raise DataError(f"no {mode} merge for {board.target}")
    # Among equals on dev the simpler one: fewer sources, then the grid's order.
    best = max(own, key=lambda row: (row.dev, -row.k))
    reference = board.reference(mode)
    if best.gain is None:
        raise DataError(f"{board.target}: {best.name} has no gain to judge")
    return Verdict(
        target=board.target,
        mode=mode,
        choice=f"{best.name}, k={best.k}",
        signature=best.signature,
        reference=reference,
        gain=best.gain,
        text=sentence(board.target, mode, best, reference),
    )


def sentence(target: str, mode: str, best: Row, reference: str) -> str:
    """What happened, without rounding a miss into a hit."""
    gain = best.gain or Difference(0.0, 0.0, 0.0)
    against = (
        f"the expert for {reference} itself"
        if mode == "IncTar"
        else f"{reference}, the best single source chosen on dev"
    )
    numbers = f"{gain.points:+.1f} points, 95 % interval {gain.low:+.1f} to {gain.high:+.1f}"
    what = f"{best.name} of {best.k} sources, the best merge on dev,"
    if gain.low > 0:
        return f"{target} ({mode}): merging helped. {what} beats {against}: {numbers}."
    if gain.high < 0:
        return f"{target} ({mode}): merging did NOT help: it hurt. {what} is below {against}: {numbers}. Use {reference}."
    return f"{target} ({mode}): merging did not clearly help. {what} against {against}: {numbers}; the interval contains 0."
