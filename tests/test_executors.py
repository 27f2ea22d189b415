"""Where work is done: here, or on a stand-in for Ray."""

import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langmerge.errors import DataError, InputError, MissingExtraError
from langmerge.executors import EXECUTORS, RETRIES, executed, started


def doubled(number: int) -> int:
    return 2 * number


def faulty(number: int) -> int:
    if number == 2:
        raise DataError("row 2 is not there")
    return doubled(number)


class RayTaskError(Exception):
    """Ray's: has what the work raised as its cause."""

    def __init__(self, cause: object = None) -> None:
        super().__init__("a long traceback of another process")
        self.cause = cause


class WorkerCrashedError(Exception):
    """Ray's: the process died."""


class OutOfMemoryError(Exception):
    """Ray's."""


class ObjectLostError(Exception):
    """Ray's."""


@dataclass(eq=False)
class Ref:
    """Work that was handed over."""

    do: Callable[[], Any]


@dataclass
class FakeRay:
    """Does the work when it is asked for, the last piece first; writes down what was called."""

    initialized: bool = False
    unreachable: Exception | None = None
    calls: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    exceptions: Any = field(
        default_factory=lambda: SimpleNamespace(
            RayTaskError=RayTaskError, WorkerCrashedError=WorkerCrashedError, OutOfMemoryError=OutOfMemoryError,
            ObjectLostError=ObjectLostError,
        )
    )  # fmt: skip

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, **options: Any) -> None:
        self.calls.append("init")
        self.options = options
        if self.unreachable is not None:
            raise self.unreachable
        self.initialized = True

    def remote(self, **resources: Any) -> Callable[[Callable[[Any], Any]], Any]:
        assert self.initialized
        self.resources = resources
        return lambda work: SimpleNamespace(remote=lambda item: self._handed(work, item))

    def _handed(self, work: Callable[[Any], Any], item: Any) -> Ref:
        self.calls.append(f"hand over {item}")
        return Ref(lambda: work(item))

    def wait(self, refs: Sequence[Ref]) -> tuple[list[Ref], list[Ref]]:
        assert isinstance(refs, list), "Ray takes nothing else"
        return [refs[-1]], refs[:-1]

    def get(self, ref: Ref) -> Any:
        try:
            return ref.do()
        except Exception as error:
            raise RayTaskError(error) from None

    def shutdown(self) -> None:
        assert self.initialized
        self.calls.append("shutdown")
        self.initialized = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Ray as it would be imported."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    return fake


def test_local_work_is_done_in_order_and_only_when_it_is_asked_for() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return doubled(number)

    found = executed(work, [3, 1, 2])
    assert done == []
    assert next(found) == (0, 6)
    assert done == [3]
    assert list(found) == [(1, 2), (2, 4)]
    assert done == [3, 1, 2]


def test_local_errors_come_through() -> None:
    found = executed(faulty, [1, 2], executor="local")
    assert next(found) == (0, 2)
    with pytest.raises(DataError, match="row 2"):
        next(found)


def test_local_work_does_not_look_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(executed(doubled, [], executor="local")) == []
    assert list(executed(doubled, [4], executor="local")) == [(0, 8)]


@pytest.mark.parametrize("name", ["dask", "", "Ray"])
def test_an_unknown_executor(ray: FakeRay, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown executor '{name}': there are local, ray"):
        next(executed(doubled, [1], executor=name))
    assert ray.calls == []
    assert EXECUTORS == ("local", "ray")


@pytest.mark.parametrize("settings", [{"address": "a:1"}, {"gpus": 0.5}])
def test_settings_of_ray_without_ray_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="without Ray: say --executor ray"):
        list(executed(str, [1], **settings))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        next(executed(doubled, [1], executor="ray"))
    assert str(caught.value) == (
        "--executor ray needs the package 'ray', which is not installed: pip install 'langmerge[ray]'"
    )
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("ray") for line in project["optional-dependencies"]["ray"])


def test_results_come_with_their_place_as_they_are_finished(ray: FakeRay) -> None:
    found = list(executed(doubled, [5, 6, 7], executor="ray"))
    assert found == [(2, 14), (1, 12), (0, 10)]
    assert ray.calls == ["init", "hand over 5", "hand over 6", "hand over 7", "shutdown"]
    assert ray.options["address"] is None


def test_equal_items_are_work_of_their_own(ray: FakeRay) -> None:
    assert sorted(executed(doubled, [5, 5], executor="ray")) == [(0, 10), (1, 10)]


def test_the_address_of_a_cluster_is_passed_on(ray: FakeRay) -> None:
    assert list(executed(doubled, [5], executor="ray", address="ray://head:10001")) == [(0, 10)]
    assert ray.options["address"] == "ray://head:10001"


def test_what_the_work_raised_comes_through(ray: FakeRay) -> None:
    found = executed(faulty, [2, 3], executor="ray")
    assert next(found) == (1, 6)
    with pytest.raises(DataError, match="row 2 is not there"):
        next(found)
    assert ray.calls[-1] == "shutdown"


@pytest.mark.parametrize("cause", [None, "no exception"])
def test_rays_own_error_where_it_has_no_cause(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, cause: object
) -> None:
    def lost(ref: Ref) -> Any:
        raise RayTaskError(cause)

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(RayTaskError, match="another process"):
        list(executed(doubled, [1], executor="ray"))
    assert ray.calls[-1] == "shutdown"


def test_who_stops_early_stops_ray(ray: FakeRay) -> None:
    found: Iterator[tuple[int, int]] = executed(doubled, [1, 2, 3], executor="ray")
    next(found)
    assert "shutdown" not in ray.calls
    found.close()  # type: ignore[attr-defined]
    assert ray.calls[-1] == "shutdown"


def test_a_ray_that_runs_already_is_left_running(ray: FakeRay) -> None:
    ray.initialized = True
    assert sorted(executed(doubled, [1, 2], executor="ray")) == [(0, 2), (1, 4)]
    with pytest.raises(DataError):
        list(executed(faulty, [2], executor="ray"))
    assert ray.initialized
    assert not {"init", "shutdown"} & set(ray.calls)


@pytest.mark.parametrize("error", [ConnectionError("refused"), ValueError("what?"), RuntimeError("broken")])
@pytest.mark.parametrize(("address", "named"), [("head:1", "head:1"), (None, "this machine")])
def test_a_cluster_that_cannot_be_reached(
    ray: FakeRay, error: Exception, address: str | None, named: str
) -> None:
    ray.unreachable = error
    with pytest.raises(InputError, match=f"Ray cannot be reached at {named}: {error}".replace("?", r"\?")):
        next(executed(doubled, [1], executor="ray", address=address))
    assert ray.calls == ["init"]


def test_a_dead_process_is_begun_again_and_then_a_result(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(ref: Ref) -> Any:
        found = ref.do()
        if found == 4:
            raise WorkerCrashedError("the worker died")
        return found

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(WorkerCrashedError):
        list(executed(doubled, [1, 2, 3], executor="ray"))
    found = executed(doubled, [1, 2, 3], executor="ray", gpus=0.5, failed=lambda item, _: -item)
    assert sorted(found) == [(0, 2), (1, -2), (2, 6)]
    assert ray.resources == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": RETRIES}
    assert RETRIES > 0


def test_what_is_started_once_serves_all_within(ray: FakeRay) -> None:
    with started("ray", "head:1"):
        assert sorted(executed(doubled, [1], executor="ray")) == [(0, 2)]
        assert sorted(executed(doubled, [2], executor="ray")) == [(0, 4)]
        assert ray.calls == ["init", "hand over 1", "hand over 2"]
    assert ray.calls[-1] == "shutdown"
    with started("local") as nothing:
        assert nothing is None
