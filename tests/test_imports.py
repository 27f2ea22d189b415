"""What importing costs, and what the package shows."""

import subprocess
import sys
from pathlib import Path

import pytest

import langmerge
from tests.tiny import write_raw_pool

HEAVY = """
heavy = sorted({'jaxtyping', 'safetensors', 'scipy', 'tokenizers', 'torch', 'transformers'} & set(sys.modules))
print('loaded', ','.join(heavy))
"""


def loaded_by(statement: str) -> str:
    """The heavy packages that a statement has loaded in a process of its own."""
    code = f"import sys\n{statement}\n{HEAVY}"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return ran.stdout.splitlines()[-1].removeprefix("loaded").strip()


def command(*arguments: object) -> str:
    """A statement that runs a command line and fails where the command does."""
    return (
        f"import langmerge.cli; sys.argv[1:] = {[str(one) for one in arguments]!r}\n"
        "try: langmerge.cli.main()\nexcept SystemExit as stopped: assert not stopped.code, stopped.code"
    )


def isort_order(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as ruff sorts `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_importing_loads_neither_torch_nor_transformers() -> None:
    assert loaded_by("import langmerge") == ""


def test_help_loads_neither_torch_nor_transformers() -> None:
    assert loaded_by(command("--help")) == ""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for two sources; the method follows."""
    write_raw_pool(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("base: base\nsources: {de-DE: de-DE, fr-FR: fr-FR}\nmethod: ")
    return path


def with_method(recipe: Path, method: str) -> Path:
    recipe.write_text(recipe.read_text() + method + "\n")
    return recipe


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "model_stock"]
)
def test_a_merge_by_kernels_loads_no_torch(recipe: Path, method: str) -> None:
    pytest.importorskip("langmerge.kernels._compiled")
    out = recipe.parent / "out"
    assert loaded_by(command("merge", with_method(recipe, method), out)) == ""
    assert (out / "langmerge.json").exists()


@pytest.mark.parametrize("method", ["ties", "wudi", "della_ties"])
def test_a_plan_loads_no_torch(recipe: Path, method: str) -> None:
    assert loaded_by(command("plan", with_method(recipe, method))) == ""


def test_the_import_tests_can_fail(recipe: Path) -> None:
    assert loaded_by("import langmerge; len(langmerge.METHODS)") == ""
    assert "torch" in loaded_by("import langmerge; langmerge.METHODS['linear']").split(",")
    assert "torch" in loaded_by(command("merge", with_method(recipe, "wudi"), recipe.parent / "out"))


def test_all_is_sorted_and_true() -> None:
    assert sorted(langmerge.__all__, key=isort_order) == langmerge.__all__
    assert dir(langmerge) == sorted(langmerge.__all__)
    for name in langmerge.__all__:
        assert getattr(langmerge, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'mergee'"):
        _ = langmerge.mergee
