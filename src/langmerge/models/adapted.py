"""Classifiers with a PEFT adapter: a base, and small weights on top of it."""

import warnings
from pathlib import Path
from typing import Any

import torch
import xxhash

from langmerge.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_signature,
    folder_signature,
    open_adapter,
    read_json,
)
from langmerge.errors import CheckpointError, MissingExtraError
from langmerge.models.classifier import load_classifier, load_tokenizer


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_adapted_classifier(
    folder: Path, *, base: Path | str | None = None, device: torch.device | str | None = None
) -> Any:
    """Return the base with its adapter, in eval mode; only the adapter's weights train.

    What trains are the adapter's own weights and those of its `modules_to_save` (nothing, where it is a prefix);
    `save_pretrained` writes an ordinary adapter folder again.

    Args:
        folder: of the adapter, weights as safetensors.
        base: a classifier's folder or hub id; that of the adapter's config by default.
        device: see `load_classifier`.

    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: no adapter there, or it does not fit the base, or the base is no classifier.
    """
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise MissingExtraError("peft", extra="adapters", needed_for=f"the adapter {folder}") from error
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"the adapter {folder} has no {ADAPTER_WEIGHTS}: save it with PEFT's save_pretrained"
        )
    place = adapter_base(folder, base)
    bare = load_classifier(place, device=device)
    try:
        with warnings.catch_warnings():
            # PEFT only warns of weights that it did not find, and leaves them as drawn at random.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            # What PEFT asks of transformers under an old name is no concern of whoever runs this.
            warnings.simplefilter("ignore", FutureWarning)
            # PEFT does not train a prefix on that it has loaded.
            trains = read_json(folder / ADAPTER_CONFIG).get("peft_type") != "PREFIX_TUNING"
            model: Any = PeftModel.from_pretrained(bare, str(folder), is_trainable=trains)
            if not trains:
                # It leaves the base free to train, whose weights no adapter folder would keep.
                model.requires_grad_(False)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"the adapter {folder} cannot be put on {place}: {reason}") from error
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(place)
    return model.eval()


def adapter_base(folder: Path, base: Path | str | None = None) -> Path | str:
    """Where an adapter's base is: a folder in absolute form, or a hub id.

    Raises:
        CheckpointError: the adapter's config names none.
    """
    named = base if base is not None else read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} names no base: give one with --base")
    # As the adapter has it (PEFT: relative to where one works), else relative to the adapter.
    places = (Path(named).expanduser(), folder / Path(named))
    return next((place.absolute() for place in places if place.is_dir()), named)


def load_model(folder: Path, *, base: Path | str | None = None) -> tuple[Any, Any]:
    """A classifier, with an adapter where the folder holds one, and its tokenizer.

    Raises:
        CheckpointError: see `load_classifier`, `load_adapted_classifier` and `load_tokenizer`.
        MissingExtraError: an adapter, and peft is not installed.
    """
    if not is_adapter(folder):
        return load_classifier(folder), load_tokenizer(folder)
    own = (folder / "tokenizer_config.json").is_file()
    model = load_adapted_classifier(folder, base=base)
    return model, load_tokenizer(folder if own else adapter_base(folder, base))


def model_signature(folder: Path, *, base: Path | str | None = None) -> str:
    """12 hexadecimal digits for a model folder, or for an adapter and what it stands on.

    Raises:
        CheckpointError: it is neither.
    """
    if not is_adapter(folder):
        return folder_signature(folder)
    place = adapter_base(folder, base)
    stands_on = folder_signature(place) if isinstance(place, Path) else str(place)
    parts = (adapter_signature(open_adapter(folder)), stands_on)
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())[:12]
