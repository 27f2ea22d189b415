"""Did merging help? One plain sentence for each target."""

from collections.abc import Sequence

from langmerge.results.study import Difference, Row, Verdict


def verdict(rows: Sequence[Row], target: str, mode: str) -> Verdict | None:
    """The merge that is best on dev, judged on test against the reference; None where nothing was merged.

    Args:
        rows: of a study.
        target: the locale.
        mode: ExcTar or IncTar.
    """
    own = [row for row in rows if (row.target, row.mode, row.kind) == (target, mode, "merge")]
    against = "self" if mode == "IncTar" else "best_zero_shot"
    reference = [row for row in rows if (row.target, row.kind) == (target, against)]
    if not own or not reference:
        return None
    # Among equals on dev the simpler one: fewer sources, then the grid's order.
    best = max(own, key=lambda row: (row.dev, -row.k))
    if best.gain is None:
        raise ValueError(f"{target}: {best.name} has no gain to judge")
    return Verdict(
        target=target,
        mode=mode,
        choice=f"{best.name}, k={best.k}",
        signature=best.signature,
        reference=reference[0].name,
        gain=best.gain,
        text=sentence(target, mode, best, reference[0].name),
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
