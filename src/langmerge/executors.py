"""Where independent pieces of work are done: in this process, or on Ray."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from langmerge.errors import InputError, MissingExtraError

EXECUTORS = ("local", "ray")

RETRIES = 3
"""How often Ray begins a piece again whose process died."""

T = TypeVar("T")
R = TypeVar("R")


def check_executor(executor: str, address: str | None = None, gpus: float = 0.0) -> None:
    """Raises InputError: there is no such executor, or Ray's settings are given without Ray."""
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor {executor!r}: there are {', '.join(EXECUTORS)}")
    if executor != "ray" and (address is not None or gpus):
        what = "an address" if address is not None else "GPUs"
        raise InputError(f"{what} of a Ray cluster without Ray: say --executor ray, or leave it out")


def executed(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    executor: str = "local",
    address: str | None = None,
    gpus: float = 0.0,
    failed: Callable[[T, BaseException], R] | None = None,
) -> Iterator[tuple[int, R]]:
    """Do `work` on every item; yields (place of the item, result) as they are finished.

    Args:
        work: a function at the top of a module; what it takes and returns can be pickled.
        items: independent of each other.
        executor: `local`, one after the other in this process; or `ray`.
        address: of a Ray cluster; without it Ray is started on this machine and stopped afterwards.
        gpus: that Ray sets aside for a piece.
        failed: makes a result for a piece whose process died, and again when it was tried once more; without it that
            ends everything.

    Raises:
        InputError: there is no such executor, no cluster at the address, or GPUs without Ray.
        MissingExtraError: Ray is not installed.
    """
    check_executor(executor, address, gpus)
    with started(executor, address) as ray:
        if ray is None:
            for place, item in enumerate(items):
                yield place, work(item)
            return
        # A process that dies is no fault of the piece yet: Ray starts another.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(work)
        waiting = {remote.remote(item): place for place, item in enumerate(items)}
        while waiting:
            done, _ = ray.wait(list(waiting))
            for one in done:
                place = waiting.pop(one)
                yield place, _result(ray, one, items[place], failed)


@contextmanager
def started(executor: str, address: str | None = None) -> Iterator[Any]:
    """The executor ready for work, once for all that is done within; gives Ray, or None for `local`.

    Args:
        executor: see `executed`.
        address: see `executed`.

    Raises:
        InputError: there is no such executor, or no cluster at the address.
        MissingExtraError: Ray is not installed.
    """
    check_executor(executor, address)
    if executor == "local":
        yield None
        return
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _result(ray: Any, one: Any, item: Any, failed: Callable[[Any, BaseException], Any] | None) -> Any:
    try:
        return ray.get(one)
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    ) as error:
        if failed is None:
            raise
        return failed(item, error)
    except ray.exceptions.RayTaskError as error:
        # What the work itself raised: it says what is wrong, Ray's traceback does not.
        raise (error.cause if isinstance(getattr(error, "cause", None), Exception) else error) from None


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtraError("ray", extra="ray", needed_for="--executor ray") from None
