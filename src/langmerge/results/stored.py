"""What stores that exist have: opened by their place, read by the names of sweeps."""

from pathlib import Path
from typing import Any

from langmerge.errors import InputError
from langmerge.locales import canonical_locale
from langmerge.results.records import Outcome
from langmerge.results.store import STORE, Store

MODES = ("ExcTar", "IncTar")


def existing_store(place: str | Path) -> Store:
    """A store that is there.

    Args:
        place: a file (SQLite), a sweep's folder, or a URL.

    Raises:
        InputError: there is none.
        StoreError: it cannot be opened.
    """
    if "://" in str(place):
        return Store(place)
    file = Path(place) / STORE if Path(place).is_dir() else Path(place)
    if not file.exists():
        raise InputError(
            f"there is no store at {file}: name one with --store, or make one with langmerge sweep"
        )
    return Store(file)


def checked_mode(mode: str | None) -> None:
    """Raises InputError for what is no mode; None is both."""
    if mode not in (None, *MODES):
        raise InputError(f"--mode {mode}: it is ExcTar or IncTar")


def stored(
    place: str | Path, mode: str | None = None, sweeps: str | None = None, *, target: str | None = None
) -> list[Outcome]:
    """What a store's cells came to.

    Args:
        place: of the store.
        mode: only ExcTar, or only IncTar.
        sweeps: only these, names or signatures by commas.
        target: only this locale.

    Raises:
        InputError: there is no such store or sweep.
    """
    checked_mode(mode)
    where: dict[str, Any] = {"mode": mode, "target": canonical_locale(target) if target else None}
    where = {key: value for key, value in where.items() if value is not None}
    with existing_store(place) as kept:
        if sweeps is None:
            return kept.outcomes(**where)
        found = [one for name in sweeps.split(",") for one in kept.outcomes(_sweep(kept, name), **where)]
    # Two sweeps may share cells.
    return list({one.cell.signature: one for one in found}.values())


def _sweep(kept: Store, name: str) -> str:
    known = kept.sweeps()
    own = [one for one in known if name in (one.name, one.signature)]
    if not own:
        names = ", ".join(dict.fromkeys(one.name for one in known)) or "none"
        raise InputError(f"the store has no sweep {name!r}: it has {names}")
    # Of several with one name the last.
    return own[-1].signature
