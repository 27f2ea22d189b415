"""Sequence classifiers on disk and in memory; the only place that calls transformers' auto classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from langmerge.errors import CheckpointError
from langmerge.models.devices import best_device
from langmerge.models.pooling import add_mean_pooling


def load_tokenizer(folder: Path | str) -> Any:
    """Return the tokenizer of a model folder or hub id.

    Raises:
        CheckpointError: there is none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(_local_or_id(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"No tokenizer can be read from {folder}: {_first_line(error)}") from error


def load_classifier(folder: Path | str, *, device: torch.device | str | None = None) -> Any:
    """Return a trained classifier in eval mode and float32.

    Args:
        folder: a Hugging Face folder with safetensors weights, or a hub id.
        device: where to; None is the best there is.

    Raises:
        CheckpointError: the folder cannot be read, or weights of the classifier are missing in it.
    """
    model, report = loaded_with(AutoModelForSequenceClassification, folder)
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{folder} is no trained classifier: {len(names)} weights are missing, the first is {names[0]!r}; "
            "make one with `langmerge train` or `langmerge merge`"
        )
    return model.to(best_device() if device is None else torch.device(device)).eval()


def new_classifier(
    base: str | Path, labels: Sequence[str], *, seed: int, mean_pooling: bool = True
) -> tuple[Any, Any]:
    """Return the base with a head for these labels, and its tokenizer.

    A base that is a classifier for the same labels in the same order, such as a merged model, keeps its head. Any other
    head is new and drawn from `seed` alone, so every expert of a pool starts from the same weights.

    Args:
        base: a folder or hub id of a pretrained encoder, or of a trained classifier.
        labels: label names in the task's order; logit j is for labels[j].
        seed: of the head.
        mean_pooling: pool by the mean where the architecture allows it (see `pooling`), not by the first token.

    Raises:
        CheckpointError: the base cannot be read, or weights outside the head are missing in it.
    """
    names = dict(enumerate(labels))
    other = not keeps_head(base, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, report = loaded_with(
            AutoModelForSequenceClassification,
            base,
            id2label=names,
            label2id={name: i for i, name in names.items()},
            # A head for other labels is not taken over: its rows would be called what they are not.
            ignore_mismatched_sizes=other,
        )
        if other and not report["missing_keys"]:
            _renew_head(model)
    prefix = f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    if missing:
        raise CheckpointError(
            f"{base} is no pretrained {type(model).__name__}: {len(missing)} weights are missing in it, "
            f"the first is {missing[0]!r}"
        )
    if mean_pooling:
        add_mean_pooling(model)
    return model.eval(), load_tokenizer(base)


def keeps_head(base: str | Path, labels: Sequence[str]) -> bool:
    """Whether a base names these labels, in this order.

    Raises:
        CheckpointError: its config cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(_local_or_id(base))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"No model can be read from {base}: {_first_line(error)}") from error
    return label_names(config) == list(labels)


def label_names(config: Any) -> list[str]:
    """A classifier's label names in the order of its logits, also where they are LABEL_0, LABEL_1, …"""
    found = config.id2label
    return [str(found[column]) for column in sorted(found)]


def _renew_head(model: Any) -> None:
    """Draw every weight outside the encoder anew, as a model that has never been trained has them."""
    fresh = dict(AutoModelForSequenceClassification.from_config(model.config).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.copy_(fresh[name])


def save_classifier(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `from_pretrained` loads: config with label names, safetensors, tokenizer."""
    # Encoding with a length limit leaves the limit in the tokenizer; it is this program's, not the model's.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def loaded_with(auto_class: Any, folder: Path | str, **config: Any) -> tuple[Any, dict[str, Any]]:
    """A float32 model of one of transformers' auto classes, and what transformers says of names that did not match.

    Raises:
        CheckpointError: nothing can be read from there.
    """
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                _local_or_id(folder),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **config,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"No model can be read from {folder}: {_first_line(error)}") from error
    return model, report


def _local_or_id(folder: Path | str) -> str:
    """Return the argument as text; a path that looks local but does not exist is never asked of the hub.

    Raises:
        CheckpointError: a `Path`, or a text that begins like one, is no folder.
    """
    text = str(folder)
    looks_local = isinstance(folder, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_local and not Path(text).expanduser().is_dir():
        raise CheckpointError(f"{text} is not a folder: give a model folder or a hub id such as owner/name")
    return str(Path(text).expanduser()) if looks_local else text


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' load report and bars away: what matters in them is checked here."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
