"""What mergekit makes of the test's recipes, as one small file. Run it with a Python that has mergekit 0.1.5 (and not langmerge):

python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install mergekit==0.1.5
/tmp/mergekit/bin/python scripts/make_mergekit_vectors.py
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "tests" / "engine" / "mergekit_vectors"
sys.path.insert(0, str(ROOT))

from tests.engine.mergekit_cases import Case, cases  # noqa: E402
from tests.engine.mergekit_models import build  # noqa: E402


def run(case: Case, out: Path) -> None:
    """Merge with mergekit, in the folder where the models are."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    text = yaml.safe_dump(dict(case.recipe))
    options = MergeOptions(quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options=options)


def vocabulary(out: Path) -> dict[str, int]:
    """Piece → id of the output's tokenizer."""
    body = json.loads((out / "tokenizer.json").read_text())
    return body["model"]["vocab"] | {token["content"]: token["id"] for token in body["added_tokens"]}


def layout_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Names and shapes, and the one dtype that all are stored in."""
    (dtype,) = {str(one.dtype).removeprefix("torch.") for one in tensors.values()}
    return {"dtype": dtype, "shapes": {name: list(one.shape) for name, one in sorted(tensors.items())}}


def described(case: Case, out: Path) -> dict[str, Any]:
    """What is compared besides tensors. The ids of a union differ from run to run."""
    config = json.loads((out / "config.json").read_text())
    template = out / "chat_template.jinja"
    return {
        "config": {key: config.get(key) for key in ("num_hidden_layers", "vocab_size")},
        "vocabulary": vocabulary(out) if "tokenizer_source" in case.recipe else None,
        "chat_template": template.read_text() if template.exists() else None,
    }


def kept_values(case: Case, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """The tensors that the case keeps, in the order of their names, behind each other; bfloat16 as its bits."""
    kept = [one for name, one in sorted(tensors.items()) if any(part in name for part in case.keep)]
    flat = torch.cat([one.reshape(-1) for one in kept])
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()


def main() -> None:
    """Write vectors.npz and vectors.json."""
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    layouts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        os.chdir(folder)
        for name, case in cases().items():
            out = Path(folder) / "out" / name
            run(case, out)
            tensors: dict[str, torch.Tensor] = {}
            for file in sorted(out.glob("*.safetensors")):
                tensors |= load_file(file)
            if (layout := layout_of(tensors)) not in layouts:
                layouts.append(layout)
            facts[name] = {**described(case, out), "layout": layouts.index(layout)}
            arrays[name] = kept_values(case, tensors)
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT / "vectors.npz", **arrays)
    body = {"mergekit": version("mergekit"), "torch": version("torch"), "layouts": layouts, "cases": facts}
    (OUT / "vectors.json").write_text(json.dumps(body, sort_keys=True) + "\n")
    print(f"{len(facts)} cases, {sum(one.size for one in arrays.values())} values")


if __name__ == "__main__":
    # Which model is the first, where no base_model is given, hangs on Python's hashes of strings.
    if os.environ.get("PYTHONHASHSEED") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "1"})
    main()
