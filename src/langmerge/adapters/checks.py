"""Whether adapters may be combined at all: the same kind, the same base, modules that fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from langmerge.adapters.reading import Adapter
from langmerge.checkpoint import folder_signature
from langmerge.errors import CheckpointError, InputError

SHAPING = ("fan_in_fan_out",)
"""Settings that say which way round a matrix is."""


def check_together(adapters: Mapping[str, Adapter], *, same_base: bool) -> None:
    """Raise unless adapters (by the role or name that messages give them) are of one kind and on one base.

    Args:
        adapters: two or more.
        same_base: their bases are the same model, whatever their configs call it.

    Raises:
        InputError: a folder twice, mixed kinds, other bases, or modules of other shapes.
    """
    (name, first), *others = adapters.items()
    for other, one in others:
        if one.kind != first.kind:
            raise InputError(
                f"{name} ({first}) is {first.kind}, {other} ({one}) is {one.kind}: give one kind"
            )
        for key in SHAPING:
            if bool(one.config.get(key)) != bool(first.config.get(key)):
                raise InputError(f"{key} differs between {name} ({first}) and {other} ({one})")
        if not same_base:
            _check_base(name, first, other, one)
        for module in one.keys:
            if module in first.keys and one.size(module) != first.size(module):
                raise InputError(
                    f"{module!r} has shape {_shown(first.size(module))} in {name} ({first}) and "
                    f"{_shown(one.size(module))} in {other} ({one}): they were trained on other bases"
                )
    folders: dict[Path, str] = {}
    for name, one in adapters.items():
        if (seen := folders.setdefault(one.folder.resolve(), name)) != name:
            raise InputError(f"{seen} and {name} are the same folder, {one}")


def _check_base(name: str, first: Adapter, other: str, one: Adapter) -> None:
    if (mine := first.record.get("pretrained")) and mine == one.record.get("pretrained"):
        return
    mine, its = _base(first), _base(one)
    if mine is None or its is None or mine == its or _signature(mine) == _signature(its):
        return
    raise InputError(
        f"{name} ({first}) was trained on {mine}, {other} ({one}) on {its}: if they are the same model, say --same-base"
    )


def _base(adapter: Adapter) -> str | Path | None:
    """Where an adapter's base is: a folder, or a hub id with its revision; None where its config names none."""
    named, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if not named:
        return None
    for place in (Path(named).expanduser(), adapter.folder / named):
        if place.is_dir():
            return place.resolve()
    return f"{named}@{revision}" if revision else str(named)


def _signature(base: str | Path) -> str:
    """Of a folder's weights; a hub id stands for itself."""
    try:
        return folder_signature(base) if isinstance(base, Path) else base
    except CheckpointError:
        return str(base)


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
