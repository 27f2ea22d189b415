"""Adapters out: an ordinary PEFT folder, written tensor by tensor, with a record of how it was made."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langmerge import __version__
from langmerge.adapters.reading import RECORD, Adapter
from langmerge.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Slot, WeightWriter, new_folder
from langmerge.checkpoint.tensors import TORCH_DTYPES
from langmerge.engine.stream import cores, steady
from langmerge.errors import InputError
from langmerge.progress import Progress, silent

FORMAT = "langmerge-adapter/1"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEEP = "keep"

_TOKENIZER = (
    "tokenizer",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "sentencepiece",
    "chat_template",
)
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """What is written for one module.

    Attributes:
        module: its name.
        keys: names of its tensors in the file.
        shapes: theirs.
        dtype: theirs.
        make: gives the tensors, in that order, and what is to be said of the module.
    """

    module: str
    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    make: Callable[[], tuple[Sequence[Tensor], dict[str, Any]]]


def kept_piece(adapter: Adapter, name: str) -> Piece:
    """A tensor that was trained as a whole, byte for byte."""
    key = adapter.whole[name]
    info = adapter.checkpoint.tensors[key]
    return Piece(
        name,
        (key,),
        (info.shape,),
        TORCH_DTYPES[info.dtype],
        lambda: ([adapter.checkpoint.read(key)], {}),
    )


def dtype_of(adapters: Sequence[Adapter], module: str, asked: str) -> torch.dtype:
    """The dtype that is asked for, or the widest of those stored."""
    if asked != KEEP and asked not in DTYPES:
        raise InputError(f"dtype {asked!r}: give {KEEP} or {', '.join(DTYPES)}")
    if asked != KEEP:
        return DTYPES[asked]
    return dtype_of_keys([one.dtype(module) for one in adapters if module in one.keys])


def dtype_of_keys(stored: Sequence[str]) -> torch.dtype:
    """The widest of dtypes, as safetensors names them."""
    return reduce(torch.promote_types, [TORCH_DTYPES[one] for one in stored])


def rounded_by_scaling(quotients: Iterable[float], dtype: torch.dtype) -> float:
    """The largest relative error that multiplying stored factors costs: none by powers of two, none worth naming in float32."""
    exact = all(math.frexp(abs(one))[0] == 0.5 for one in quotients if one)
    return 0.0 if exact or dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2


def write_adapter(
    out: Path,
    config: Mapping[str, Any],
    pieces: Sequence[Piece],
    settle: Callable[[dict[str, dict[str, Any]]], dict[str, Any]],
    *,
    companions: Path,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write an adapter; the folder appears whole or not at all.

    Args:
        out: the new folder.
        config: its adapter_config.json.
        pieces: what goes into it, in order.
        settle: makes the record from what the pieces said of their modules, or raises where nothing should be written.
        companions: a folder whose tokenizer goes along.
        overwrite: replace `out`.
        progress: told of modules.

    Returns:
        The record, as it is beside the weights.

    Raises:
        OutputError: `out` exists or cannot be written.
        InputError: a number is too large for its dtype.
    """
    slots = [
        Slot(key, shape, _NAMES[piece.dtype])
        for piece in pieces
        for key, shape in zip(piece.keys, piece.shapes, strict=True)
    ]
    said: dict[str, dict[str, Any]] = {}
    with new_folder(out, overwrite=overwrite) as folder:
        writer = WeightWriter(folder, slots, max_shard=1 << 62, single=ADAPTER_WEIGHTS)
        threads = ThreadPoolExecutor(cores())
        with writer, steady(), threads, progress("merging", len(pieces)) as advance:
            # Written by the thread that made it: no more modules are in memory than there are threads.
            for piece, found in zip(pieces, threads.map(partial(_carry_out, writer), pieces), strict=True):
                if found:
                    said[piece.module] = found
                advance(1)
        record = {"format": FORMAT, "langmerge": __version__, **settle(said)}
        for name, content in ((ADAPTER_CONFIG, config), (RECORD, record)):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        for file in sorted(companions.iterdir()):
            if file.name.startswith(_TOKENIZER) and file.is_file() and not file.is_symlink():
                (folder / file.name).write_bytes(file.read_bytes())
    return record


def _carry_out(writer: WeightWriter, piece: Piece) -> dict[str, Any]:
    """Make a piece, write it, and return what is to be said of it."""
    tensors, found = piece.make()
    for key, shape, tensor in zip(piece.keys, piece.shapes, tensors, strict=True):
        _write(writer, key, shape, tensor, piece.dtype)
    return found


def _write(
    writer: WeightWriter, key: str, shape: tuple[int, ...], tensor: Tensor, dtype: torch.dtype
) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{key} has shape {tuple(tensor.shape)}, planned was {shape}")
    stored = tensor.to(dtype).contiguous()
    # A sum that overflows is looked at again, entry by entry.
    if not bool(torch.isfinite(stored.sum())) and not bool(torch.isfinite(stored).all()):
        raise InputError(f"tensor {key!r} is too large for {dtype}: say --dtype float32")
    writer.write(key, 0, stored.view(-1).view(torch.uint8).numpy())


def lora_config(
    adapters: Sequence[Adapter], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """adapter_config.json for factors of these ranks (by module) whose product is multiplied by these scales.

    PEFT takes alpha / rank; the commonest rank and alpha stand for all, the others in patterns by full name.
    """
    alphas = {module: _plain(scales[module] * rank) for module, rank in ranks.items()}
    rank, alpha = Counter((ranks[module], alphas[module]) for module in ranks).most_common(1)[0][0]
    return {
        **targeted(adapters, list(ranks)),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
        "use_rslora": False,
        "init_lora_weights": True,
    }


def targeted(adapters: Sequence[Adapter], modules: Sequence[str]) -> dict[str, Any]:
    """The first adapter's config, for these modules: by its own words where all say the same, else by full names."""
    first = adapters[0]
    words = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    alike = all(
        all(_sorted(one.config.get(word)) == _sorted(first.config.get(word)) for word in words)
        and set(one.keys) == set(modules)
        for one in adapters
    )
    own = dict(first.config)
    if not alike:
        own |= {word: None for word in words if word in own} | {"target_modules": sorted(modules)}
    return own | {"inference_mode": True}


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _plain(number: float) -> int | float:
    """As PEFT writes it: whole where it is, and free of rounding's last digits."""
    near = round(number)
    return near if near and abs(number - near) < 1e-9 * abs(number) else number
