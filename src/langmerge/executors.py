"""Where independent pieces of work are done: in this process, or on Ray."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from langmerge.errors import InputError, MissingExtraError

EXECUTORS = ("local", "ray")

T = TypeVar("T")
R = TypeVar("R")


def executed(
    work: Callable[[T], R], items: Sequence[T], *, executor: str = "local", address: str | None = None
) -> Iterator[tuple[int, R]]:
    """Do `work` on every item; yields (place of the item, result) as they are finished.

    Args:
        work: a function at the top of a module; what it takes and returns can be pickled.
        items: independent of each other.
        executor: `local`, one after the other in this process; or `ray`.
        address: of a Ray cluster; without it Ray is started on this machine and stopped afterwards.

    Raises:
        InputError: there is no such executor, or no cluster at the address.
        MissingExtraError: Ray is not installed.
    """
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor {executor!r}: there are {', '.join(EXECUTORS)}")
    if executor == "local":
        for place, item in enumerate(items):
            yield place, work(item)
        return
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from None
    try:
        remote = ray.remote(num_cpus=1)(work)
        waiting = {remote.remote(item): place for place, item in enumerate(items)}
        while waiting:
            done, _ = ray.wait(list(waiting))
            for one in done:
                yield waiting.pop(one), _result(ray, one)
    finally:
        if started:
            ray.shutdown()


def _result(ray: Any, one: Any) -> Any:
    try:
        return ray.get(one)
    except ray.exceptions.RayTaskError as error:
        # What the work itself raised: it says what is wrong, Ray's traceback does not.
        raise (error.cause if isinstance(getattr(error, "cause", None), Exception) else error) from None


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtraError("ray", extra="ray", needed_for="--executor ray") from None
