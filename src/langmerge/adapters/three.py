"""Three adapters and how they are to be combined, checked before anything is read."""

import math
from dataclasses import dataclass

from langmerge.adapters.checks import check_together
from langmerge.adapters.prefix import FORMS
from langmerge.adapters.reading import Adapter
from langmerge.adapters.writing import KEEP
from langmerge.errors import InputError

MODES = {"lora": ("product", "svd", "factors"), "ia3": ("ratio", "geometric"), "prefix": FORMS}
"""How each kind is combined; the first is the default."""


@dataclass(frozen=True)
class Transfer:
    """How three adapters become one.

    Attributes:
        t: how much of the reference task's P2 − P3 is taken.
        mode: see `MODES`; the kind's first by default.
        rank: of the result with `svd`; P1's largest by default.
        clip: (IA)³: l2 / l3 stays within [1 / clip, clip]; without, a divisor near 0 or a change of sign is an error.
        dtype: float32, bfloat16, float16, or keep: the widest of those stored.
        same_base: the adapters' bases are the same model, whatever they are called.
    """

    t: float = 1.0
    mode: str | None = None
    rank: int | None = None
    clip: float | None = None
    dtype: str = KEEP
    same_base: bool = False


@dataclass(frozen=True)
class Three:
    """The adapters, opened."""

    one: Adapter
    two: Adapter
    three: Adapter

    @property
    def all(self) -> tuple[Adapter, Adapter, Adapter]:
        """In order."""
        return self.one, self.two, self.three

    @property
    def modules(self) -> list[str]:
        """P1's, then those that only the references change."""
        return [*self.one.keys, *(module for module in self.two.keys if module not in self.one.keys)]


def checked(three: Three, asked: Transfer) -> str:
    """The mode, where nothing is wrong with what was given.

    Raises:
        InputError: see `transfer_adapter`.
    """
    roles = dict(zip(("the task adapter", "the reference in the target language", "the reference in the source language"), three.all, strict=True))  # fmt: skip
    check_together(roles, same_base=asked.same_base)
    kind = three.one.kind
    mode = asked.mode or MODES[kind][0]
    if mode not in MODES[kind]:
        raise InputError(f"mode {mode!r} is not for {kind}: give {' or '.join(MODES[kind])}")
    if not math.isfinite(asked.t) or asked.t == 0:
        raise InputError(f"t = {asked.t:g} leaves {three.one} as it is: there is nothing to merge")
    for name, value, needs in (("rank", asked.rank, "svd"), ("clip", asked.clip, MODES["ia3"])):
        if value is not None and mode not in needs:
            raise InputError(f"{name} is not used by mode {mode!r}: leave it out")
    if asked.rank is not None and asked.rank < 1:
        raise InputError(f"rank {asked.rank}: give 1 or more")
    if asked.clip is not None and not asked.clip > 1:
        raise InputError(f"clip {asked.clip:g}: give a number above 1")
    _check_modules(three)
    return mode


def _check_modules(three: Three) -> None:
    own, two, other = (set(adapter.keys) for adapter in three.all)
    if two != other:
        lone = min(two ^ other)
        having = three.two if lone in two else three.three
        raise InputError(
            f"the references change other modules: {lone!r} is only in {having}: what they differ by there is no language"
        )
    if not own & two:
        raise InputError(
            f"no module of {three.one} is in {three.two}: the first are {min(own)!r} and {min(two)!r}"
        )
