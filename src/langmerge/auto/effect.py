"""Predicting what a merge will bring before it is made, and whether that prediction is better than none."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.special import stdtrit

from langmerge import __version__
from langmerge.auto.evidence import Evidence
from langmerge.auto.features import NEEDS, names
from langmerge.auto.stored import candidates, cells_of
from langmerge.errors import InputError, MissingExtraError
from langmerge.files import replace_text
from langmerge.results.records import Outcome
from langmerge.selection.judging import spearman

FORMAT = "langmerge-effect/1"

OUTCOMES = ("gain", "effect")
"""What is predicted: points over the single expert, and over the mean of the merged sources."""

TREES = 300
"""Of the random forest."""

FEWEST = 4
"""Targets: with three, a line through the other two is no prediction."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Example:
    """A merge that was made.

    Attributes:
        target: the locale.
        seed: of the training.
        name: of `auto`'s candidates.
        features: of its sources.
        gain: points over the single expert.
        effect: points over the mean of its sources; None where that was not measured.
    """

    target: str
    seed: int
    name: str
    features: Mapping[str, float]
    gain: float
    effect: float | None


Featured = Callable[[int, str, Sequence[str]], Mapping[str, float]]
"""Features by seed, target and sources."""


def examples(outcomes: Sequence[Outcome], mode: str, features: Featured) -> list[Example]:
    """A store's merges that are candidates of `auto`, with what was known of their sources beforehand.

    Raises:
        InputError: there is none, or pools are mixed.
    """
    cells, known, found = cells_of(mode), dict[tuple[int, str, tuple[str, ...]], Mapping[str, float]](), []
    for one in candidates(outcomes, mode):
        cell, run = one.cell, one.run
        if run is None or one.gain is None:
            continue
        key = (cell.seed, cell.target, run.sources)
        if key not in known:
            known[key] = features(*key)
        effect = one.effect.points if one.effect is not None else None
        found.append(Example(cell.target, cell.seed, cells[cell.name], known[key], one.gain.points, effect))
    if not found:
        raise InputError(
            f"the store has no cells of auto's candidates ({', '.join(cells)}), {mode}: "
            "run a sweep like examples/deciding.yaml first"
        )
    return found


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 3, 17)))


def _forest() -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=TREES, min_samples_leaf=3, random_state=0)


MODELS: Mapping[str, Callable[[], Any]] = {"ridge": _ridge, "forest": _forest}
"""By name; `ridge` alone can be written down."""


@dataclass(frozen=True)
class Predicted:
    """How well one thing is predicted for targets that were not seen.

    Attributes:
        name: of the candidate.
        what: gain or effect.
        needs: the features: all that need no more than this.
        model: of `MODELS`.
        error: mean absolute error, points, each target's by a model of the others.
        constant: that of the other targets' mean.
        better: constant − error, points; positive where the features help.
        low: lower end of its 95 % interval, Student's over targets.
        high: upper end.
        spearman: rank correlation of predicted and measured means of targets. Where features say nothing it tends to −1: the
            mean of the others is the lower the better a target is itself.
        residual: standard deviation of measured − predicted, points.
        targets: how many.
        cells: targets × seeds.
    """

    name: str
    what: str
    needs: str
    model: str
    error: float
    constant: float
    better: float
    low: float
    high: float
    spearman: float
    residual: float
    targets: int
    cells: int

    @property
    def helps(self) -> bool:
        """Whether the interval leaves zero out on the good side."""
        return self.low > 0


def predicted(found: Sequence[Example], name: str, what: str, needs: str, model: str) -> Predicted:
    """Leave one target out, with all its seeds; fit on the others; compare with their mean.

    Raises:
        InputError: too few targets.
        MissingExtraError: scikit-learn is not installed.
    """
    own = [one for one in found if one.name == name and _value(one, what) is not None]
    targets = np.array([one.target for one in own])
    if len(set(targets)) < FEWEST:
        raise InputError(f"{name}: {len(set(targets))} targets, and a prediction needs {FEWEST} or more")
    x, y = _table(own, needs), np.array([_value(one, what) for one in own], dtype=np.float64)
    guess, mean = np.empty_like(y), np.empty_like(y)
    for target in sorted(set(targets)):
        out = targets == target
        guess[out] = _fitted(model, x[~out], y[~out]).predict(x[out])
        # Of targets, not of cells: one with more seeds is not more of a language.
        mean[out] = np.mean([y[targets == other].mean() for other in set(targets) - {target}])
    each = sorted(set(targets))
    errors, constants = (
        np.array([np.abs(y - by)[targets == t].mean() for t in each]) for by in (guess, mean)
    )
    # A bootstrap over a handful of targets would be surer than it may.
    better = constants - errors
    half = float(stdtrit(len(each) - 1, 0.975) * better.std(ddof=1) / np.sqrt(len(each)))
    return Predicted(
        name, what, needs, model, float(errors.mean()), float(constants.mean()), float(better.mean()),
        float(better.mean()) - half, float(better.mean()) + half,
        spearman([float(y[targets == t].mean()) for t in each], [float(guess[targets == t].mean()) for t in each]),
        float((y - guess).std(ddof=1)), len(each), len(own),
    )  # fmt: skip


def _value(one: Example, what: str) -> float | None:
    return one.gain if what == "gain" else one.effect


def _table(own: Sequence[Example], needs: str) -> Array:
    return np.array([[one.features[feature] for feature in names(needs)] for one in own], dtype=np.float64)


def _fitted(model: str, x: Array, y: Array) -> Any:
    try:
        made = MODELS[model]()
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            str(error.name), extra="prediction", needed_for="predicting effects"
        ) from None
    return made.fit(x, y)


def all_predicted(found: Sequence[Example]) -> list[Predicted]:
    """Every candidate, outcome, set of features and model."""
    tried = list(dict.fromkeys(one.name for one in found))
    there = [need for need in NEEDS if all(set(names(need)) <= set(one.features) for one in found)]
    return [
        predicted(found, name, what, needs, model)
        for name in tried
        for what in OUTCOMES
        for needs in there
        for model in MODELS
    ]


# What is written down, for `auto`


def write_effects(
    file: Path, found: Sequence[Example], judged: Sequence[Predicted], *, task: str, mode: str
) -> list[str]:
    """Write a line for every candidate and set of features, with how well it predicts; `auto` reads those that help.

    For every target that was measured there is one without it: what a target has brought on test must not decide for it.

    Args:
        file: JSON.
        found: the merges.
        judged: of them.
        task: name of the task.
        mode: ExcTar or IncTar.

    Returns:
        The candidates whose gain it helps to predict.
    """
    lines = []
    for one in judged:
        if (one.what, one.model) != ("gain", "ridge") or one.needs == "self":
            continue
        own = [example for example in found if example.name == one.name]
        without = {
            target: _line([example for example in own if example.target != target], one.needs)
            for target in sorted({example.target for example in own})
        }
        lines.append({**asdict(one), "helps": one.helps, "line": _line(own, one.needs), "without": without})
    told = {"format": FORMAT, "task": task, "mode": mode, "langmerge": __version__, "lines": lines}
    replace_text(file, json.dumps(told, indent=1) + "\n")
    return [f"{one['name']} ({one['needs']})" for one in lines if one["helps"]]


def _line(own: Sequence[Example], needs: str) -> dict[str, Any]:
    """Ridge regression on features as they are."""
    fitted = _fitted("ridge", _table(own, needs), np.array([example.gain for example in own]))
    scale, ridge = fitted[0], fitted[-1]
    slope = ridge.coef_ / scale.scale_
    return {
        "intercept": float(ridge.intercept_ - slope @ scale.mean_),
        "slope": dict(zip(names(needs), slope.tolist(), strict=True)),
    }


def read_effects(
    file: Path,
    *,
    task: str,
    mode: str,
    target: str,
    needs: str,
    features: Callable[[], Mapping[str, float]],
) -> dict[str, Evidence]:
    """What a file predicts for a target, as evidence, of the candidates for which predictions help.

    Args:
        file: of `write_effects`.
        task: the pool's.
        mode: ExcTar or IncTar.
        target: the locale; where it was measured it is predicted by the others.
        needs: what may be looked at.
        features: of the target's sources; asked for only if a line helps.

    Raises:
        InputError: no such file, or one for another task or mode.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        lines = [_Line(**one) for one in told["lines"]] if told["format"] == FORMAT else None
        made_for = (told["task"], told["mode"])
    except (OSError, ValueError, KeyError, TypeError):
        lines, made_for = None, ("", "")
    if lines is None:
        raise InputError(f"{file} is no file of effects: make one with langmerge runs predict -o")
    if made_for != (task, mode):
        raise InputError(f"{file} is for {', '.join(made_for)}, not for {task}, {mode}")
    helping = [one for one in lines if one.helps and one.needs == needs]
    own = features() if helping else {}
    return {
        one.name: Evidence(one.at(target, own), one.residual, one.targets, f"predicted by {file.name}")
        for one in helping
    }


class _Line(BaseModel):
    """What `write_effects` has written of a candidate."""

    name: str
    needs: str
    helps: bool
    residual: float
    targets: int
    line: dict[str, Any]
    without: dict[str, dict[str, Any]]

    def at(self, target: str, features: Mapping[str, float]) -> float:
        """The gain that is predicted."""
        line = self.without.get(target, self.line)
        return float(line["intercept"] + sum(slope * features[name] for name, slope in line["slope"].items()))
