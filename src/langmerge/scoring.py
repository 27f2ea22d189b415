"""Merges scored in memory: one resident classifier is filled with one merge after the other, and nothing is written."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import Plan, make_plan, merged_tensors, recipe_payload
from langmerge.errors import CheckpointError, InputError
from langmerge.evaluate import PoolEvaluator
from langmerge.learned.fewshot import mean_cross_entropy
from langmerge.learned.search import block_groups
from langmerge.methods import checked_parameters
from langmerge.models import load_classifier
from langmerge.pool import Pool
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature


class ResidentClassifier:
    """The one model in memory that merges are written into, tensor by tensor.

    Args:
        pool: whose base gives it its architecture; loaded with the first merge.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._model: Any = None
        self._merged: str | None = None

    def filled(self, plan: Plan, own: str) -> Any:
        """The classifier with the weights of a plan.

        Args:
            plan: what to merge.
            own: signature of the plan; nothing is done if it is what the model holds already.
        """
        if self._merged != own:
            self._fill(plan)
            self._merged = own
        return self._model

    @torch.no_grad()
    def _fill(self, plan: Plan) -> None:
        if self._model is None:
            self._model = load_classifier(self._pool.base_folder)
        self._merged = None
        state = self._model.state_dict()
        for one in merged_tensors(plan):
            # A name that is not there raises: nothing may be merged and then left out.
            state[one.plan.name].copy_(one.tensor)


class MergeScorer:
    """How good the merge with given coefficients is on a target's rows.

    Args:
        evaluator: of the pool that the sources come from; its limits say how many rows are looked at.
        target: the locale.
        method: by which to merge.
        parameters: of the method.
        split: dev or train; coefficients are never chosen on test.
        keep: keep every merge's logits in the pool's folder, so that a second run computes nothing.

    Raises:
        MethodError: an unknown method or parameter.
        InputError: the split is test.
    """

    def __init__(
        self,
        evaluator: PoolEvaluator,
        target: str,
        *,
        method: str = "task_arithmetic",
        parameters: Mapping[str, Any] | None = None,
        split: str = "dev",
        keep: bool = False,
    ) -> None:
        if split == "test":
            raise InputError("coefficients are not chosen on test: score merges on dev or train")
        self.evaluator, self.target, self.split, self.keep = evaluator, target, split, keep
        self.method, self.parameters = method, dict(parameters or {})
        checked_parameters(method, self.parameters)
        self._resident = ResidentClassifier(evaluator.pool)
        self._last: tuple[str, Logits] | None = None

    def plan(self, coefficients: Coefficients) -> Plan:
        """The plan of the merge.

        Raises:
            PoolError: the pool has no expert for a source.
            PlanError: they cannot be merged so.
        """
        pool = self.evaluator.pool
        return make_plan(
            Recipe(
                base=pool.base_folder,
                sources={source: pool.expert(source) for source in coefficients.sources},
                method=self.method,
                parameters=self.parameters,
                coefficients=coefficients,
                target=self.target,
            )
        )

    def groups(self, coefficients: Coefficients) -> tuple[str, ...]:
        """The groups of the tensors that coefficients matter to: embeddings, block:0, …, head.

        One merge is made to find them: where the base and every source agree (a layer that only pools), a number would
        be searched in vain.
        """
        plan = self.plan(coefficients)
        return block_groups([t.plan.name for t in merged_tensors(plan) if t.treatment in ("merged", "mean")])

    def about(self, coefficients: Coefficients) -> dict[str, Any]:
        """What decides the scores of all merges of these sources: models, method, data, rows and versions."""
        payload = recipe_payload(self.plan(coefficients))
        merges = signature({key: value for key, value in payload.items() if key != "coefficients"})
        return {
            "method": self.method,
            "parameters": self.parameters,
            "target": self.target,
            "split": self.split,
            "limit": self.evaluator.limits.get(self.split),
            "signature": self.evaluator.signature(merges, self.target, self.split),
        }

    def logits(self, coefficients: Coefficients) -> Logits:
        """The merge's logits on the target's rows.

        Raises:
            CheckpointError: they are NaN or infinite.
        """
        return self._computed(coefficients, [])

    def accuracy(self, coefficients: Coefficients) -> float:
        """Share of rows that the merge predicts right, in [0, 1]; NaN where it gives no finite logits."""
        found = self._finite(coefficients)
        return math.nan if found is None else float(found.correct.mean())

    def cross_entropy(self, coefficients: Coefficients) -> float:
        """Mean cross-entropy of the rows' labels, in nats; NaN where the merge gives no finite logits."""
        found = self._finite(coefficients)
        return math.nan if found is None else mean_cross_entropy(found.values, found.labels)

    def _finite(self, coefficients: Coefficients) -> Logits | None:
        """The logits, or None where they are NaN or infinite; every other fault is raised."""
        ready: list[str] = []
        try:
            return self._computed(coefficients, ready)
        except CheckpointError:
            if not ready:
                raise
            return None

    def _computed(self, coefficients: Coefficients, ready: list[str]) -> Logits:
        """The logits; `ready` gets an entry when nothing but their numbers can still be wrong."""
        plan = self.plan(coefficients)
        own = signature(recipe_payload(plan))
        if self._last is not None and self._last[0] == own:
            return self._last[1]

        def model() -> Any:
            classifier = self._resident.filled(plan, own)
            if set(self.evaluator.task.labels) <= set(classifier.config.id2label.values()):
                ready.append(own)
            return classifier

        kept = self.evaluator.kept(f"merges/{own}", self.target, self.split) if self.keep else None
        found = self.evaluator.logits(model, own, self.target, self.split, kept=kept)
        self._last = (own, found)
        return found
