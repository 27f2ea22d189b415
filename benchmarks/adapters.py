"""How fast, and in how much memory, adapters are merged: whole processes against the floor.

    python benchmarks/adapters.py --work DIR [--rounds 3]

Three rank-16 LoRA adapters over all linear layers of a model of Llama-2 7B's shape, bfloat16, random: 32 layers, width 4096,
feed-forward 11008; 80 MB each. `langmerge transfer` (product and svd) and `langmerge adapters merge` (cat, core ties) on
them, beside the same command on adapters of one small layer (start-up), a copy of the inputs' bytes (the floor), all in one
round. Memory is of another run, private pages, looked at every 20 ms. Then every result is compared with the dense update of
a few modules, in float64.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from _measure import run_process, warm
from safetensors import safe_open
from safetensors.torch import save_file

WIDTH, HIDDEN, LAYERS, RANK = 4096, 11008, 32, 16
ROLES = ("task-source", "reference-target", "reference-source")
GOALS = {"seconds": 2.0, "svd": 20.0, "private": 600e6}


def modules(layers: int, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer."""
    attention = {f"self_attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    mlp = {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in (attention | mlp).items()
    }


def write(folder: Path, seed: int, layers: int, width: int, hidden: int) -> Path:
    """An adapter with drawn factors."""
    if (folder / "adapter_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in modules(layers, width, hidden).items():
        for name, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            drawn = torch.randn(shape, generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = drawn.bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": "shaped/like-7b", "r": RANK,
        "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def commands(folders: list[Path], out: Path) -> dict[str, list[str]]:
    """Command lines by name."""
    program = str(Path(sys.executable).with_name("langmerge"))
    roles = [part for role, folder in zip(ROLES, folders, strict=True) for part in (f"--{role}", str(folder))]
    weighted = [f"{folder}:{weight}" for folder, weight in zip(folders, (0.5, 0.25, 0.25), strict=True)]
    transfer = [program, "transfer", str(out), "--overwrite", *roles]
    merge = [program, "adapters", "merge", str(out), *weighted, "--overwrite"]
    return {
        "transfer, product": transfer,
        "transfer, svd": [*transfer, "--mode", "svd"],
        "merge, cat": merge,
        "merge, core ties": [*merge, "--method", "ties"],
    }


def floor(folders: list[Path], out: Path) -> list[str]:
    """A process that reads the inputs and writes as many bytes."""
    code = (
        "import sys\nwith open(sys.argv[-1], 'wb') as out:\n"
        "    for name in sys.argv[1:-1]:\n        out.write(open(name, 'rb').read())"
    )
    files = [str(folder / "adapter_model.safetensors") for folder in folders]
    return [sys.executable, "-c", code, *files, str(out)]


def agreement(folders: list[Path], out: Path, weights: tuple[float, ...]) -> float:
    """Largest relative difference of a module's update from the dense sum."""
    worst = 0.0
    config = json.loads((out / "adapter_config.json").read_text())
    for module in list(modules(LAYERS, WIDTH, HIDDEN))[::50]:
        expected = sum(w * 2.0 * _dense(folder, module) for w, folder in zip(weights, folders, strict=True))
        scale = config["lora_alpha"] / config["r"]
        found = scale * _dense(out, module)
        worst = max(worst, float((found - expected).norm() / torch.as_tensor(expected).norm()))
    return worst


def _dense(folder: Path, module: str) -> torch.Tensor:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        a, b = (file.get_tensor(f"base_model.model.{module}.lora_{name}.weight").double() for name in "AB")
    return torch.as_tensor(b @ a)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and outputs: 1 GB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    big = [write(given.work / role, seed, LAYERS, WIDTH, HIDDEN) for seed, role in enumerate(ROLES)]
    small = [write(given.work / f"small-{role}", seed, 1, 64, 64) for seed, role in enumerate(ROLES)]
    out, log = given.work / "out", given.work / "log.txt"
    timed = commands(big, out)
    idle = commands(small, given.work / "small-out")
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    beyond: dict[str, list[float]] = {name: [] for name in timed}
    copied = []
    for _ in range(given.rounds):
        warm(folder / "adapter_model.safetensors" for folder in big)
        copied.append(run_process(floor(big, given.work / "floor.bin"), log=log, env={}).seconds)
        for name, command in timed.items():
            start = run_process(idle[name], log=log, env={}).seconds
            seconds[name].append(run_process(command, log=log, env={}).seconds)
            beyond[name].append(seconds[name][-1] - start)
    print(
        f"inputs 3 × {(big[0] / 'adapter_model.safetensors').stat().st_size / 1e6:.0f} MB, {given.rounds} rounds"
    )
    print(f"floor (a process that copies the inputs) {statistics.median(copied):.2f} s")
    for name, command in timed.items():
        memory = run_process(command, log=log, env={}, watched=True).memory
        assert memory is not None
        goal = (
            GOALS["svd"]
            if "svd" in name
            else GOALS["seconds"]
            if name in ("transfer, product", "merge, cat")
            else None
        )
        said = f", at most {goal:g}" if goal else ""
        print(
            f"{name:18s} {statistics.median(seconds[name]):6.2f} s, beyond start-up {statistics.median(beyond[name]):6.2f} s "
            f"({min(beyond[name]):.2f}–{max(beyond[name]):.2f}{said}), {statistics.median(seconds[name]) / statistics.median(copied):.1f} × "
            f"the floor; private memory {memory.private / 1e6:.0f} MB"
            + (f", at most {GOALS['private'] / 1e6:.0f}" if goal == GOALS["seconds"] else "")
        )
        if name in ("transfer, product", "merge, cat"):
            weights = (1.0, 1.0, -1.0) if "transfer" in name else (0.5, 0.25, 0.25)
            print(
                f"{'':18s} largest relative difference from the dense sum: {agreement(big, out, weights):.1e}"
            )


if __name__ == "__main__":
    main()
