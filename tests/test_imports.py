"""What importing costs, and what the package shows."""

import subprocess
import sys

import pytest

import langmerge

HEAVY = "heavy = sorted({'torch', 'transformers'} & set(sys.modules)); print(','.join(heavy))"


def loaded_by(statement: str) -> str:
    code = f"import sys; {statement}\n{HEAVY}"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1]


def isort_order(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as ruff sorts `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_importing_loads_neither_torch_nor_transformers() -> None:
    assert loaded_by("import langmerge") == ""


def test_help_loads_neither_torch_nor_transformers() -> None:
    shown = "import contextlib, langmerge.cli; sys.argv[1:] = ['--help']\nwith contextlib.suppress(SystemExit): langmerge.cli.main()\n"
    assert loaded_by(shown) == ""


def test_the_import_tests_can_fail() -> None:
    assert loaded_by("import langmerge; langmerge.METHODS") == "torch"


def test_all_is_sorted_and_true() -> None:
    assert sorted(langmerge.__all__, key=isort_order) == langmerge.__all__
    assert dir(langmerge) == sorted(langmerge.__all__)
    for name in langmerge.__all__:
        assert getattr(langmerge, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'mergee'"):
        _ = langmerge.mergee
