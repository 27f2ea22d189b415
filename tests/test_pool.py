import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from langmerge.errors import LocaleError, PoolError
from langmerge.pool import Pool


def made(root: Path, *locales: str) -> Pool:
    """A pool with a base and an expert per locale, saved."""
    (root / "base").mkdir(parents=True)
    pool = Pool(root=root, task="demo:intent", labels=("alarm", "music"), base=Path("base"))
    for locale in locales:
        (root / "experts" / locale).mkdir(parents=True)
        pool = pool.with_expert(locale, root / "experts" / locale, {"signature": f"s-{locale}", "steps": 3})
    pool.save()
    return pool


def test_a_pool_comes_back_from_its_file(tmp_path: Path) -> None:
    pool = made(tmp_path / "pool", "sw-KE", "de-DE")
    found = Pool.load(tmp_path / "pool")
    assert found == pool
    assert Pool.load(str(tmp_path / "pool")) == pool
    assert found.labels == ("alarm", "music")
    assert found.experts["sw-KE"].training == {"signature": "s-sw-KE", "steps": 3}
    assert sorted(path.name for path in found.root.iterdir()) == ["base", "experts", "pool.yaml"]


def test_folders_are_found_from_the_pool(tmp_path: Path) -> None:
    pool = made(tmp_path / "pool", "sw-KE", "de-DE")
    assert pool.locales == ("de-DE", "sw-KE")
    assert pool.base_folder == tmp_path / "pool" / "base"
    assert pool.expert("sw-KE") == tmp_path / "pool" / "experts" / "sw-KE"
    with pytest.raises(PoolError, match=r"has no expert for 'cy-GB': it has de-DE, sw-KE"):
        pool.expert("cy-GB")
    with pytest.raises(PoolError, match="it has none"):
        made(tmp_path / "empty").expert("cy-GB")


def test_a_pool_can_be_moved(tmp_path: Path) -> None:
    made(tmp_path / "pool", "sw-KE")
    (tmp_path / "pool").rename(tmp_path / "moved")
    assert Pool.load(tmp_path / "moved").expert("sw-KE").is_dir()


def test_a_folder_outside_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pool = made(Path("pool")).with_expert("cy-gb", Path("elsewhere")).with_base(Path("elsewhere"))
    pool.save()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    found = Pool.load(tmp_path / "pool")
    assert found.experts["cy-GB"].folder == found.base == Path(os.path.realpath(tmp_path / "elsewhere"))
    assert found.expert("cy-GB") == found.base_folder


def test_experts_are_added_to_a_copy_under_one_spelling(tmp_path: Path) -> None:
    pool = made(tmp_path / "pool", "sw-KE")
    more = pool.with_expert("sw_ke", pool.root / "experts" / "sw-KE", {"steps": 9})
    assert more.locales == ("sw-KE",)
    assert more.experts["sw-KE"].training == {"steps": 9}
    assert pool.experts["sw-KE"].training["steps"] == 3
    with pytest.raises(LocaleError):
        pool.with_expert("nothing", pool.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "pool.yaml: task: Field required"),
        ({"labels": "alarm"}, "pool.yaml: labels: Input should be a valid tuple"),
        ({"colour": "red"}, "pool.yaml: colour: Extra inputs are not permitted"),
        ({"experts": {"sw-KE": {"path": "x"}}}, "pool.yaml: experts.sw-KE.folder: Field required"),
        (
            {"format": "langmerge-pool/9"},
            "format is 'langmerge-pool/9'; this version reads 'langmerge-pool/1'",
        ),
        ({"base": "nowhere"}, r"lists base at .*/nowhere, which does not exist"),
        ({"experts": {"cy-GB": {"folder": "nowhere"}}}, r"lists cy-GB at .*/nowhere, which does not exist"),
    ],
)
def test_a_wrong_pool_is_one_clear_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = made(tmp_path / "pool", "sw-KE").root / "pool.yaml"
    raw = {**yaml.safe_load(path.read_text()), **change}
    path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
    with pytest.raises(PoolError, match=message) as caught:
        Pool.load(tmp_path / "pool")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"- a\n", b"base: [", b"just text", b"task: \xff"])
def test_a_file_that_is_no_pool(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pool.yaml").write_bytes(data)
    with pytest.raises(PoolError, match=r"pool.yaml is no pool file") as caught:
        Pool.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_pool_at_all(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"pool.yaml does not exist: make a pool with langmerge train"):
        Pool.load(tmp_path / "pool")
