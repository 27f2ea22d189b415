"""PEFT adapters as they lie on disk: which modules they change, by what, and what they trained as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from langmerge.adapters.lora import Factors
from langmerge.checkpoint import Checkpoint, adapter_signature, open_adapter, read_json
from langmerge.errors import CheckpointError

Kind = Literal["lora", "ia3", "prefix"]

RECORD = "langmerge_adapter.json"
"""Beside an adapter that langmerge made: how, from what, and the labels of its head."""

_KINDS: dict[str, Kind] = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix"}
_START = re.compile(r"^base_model\.(?:model\.)?")
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?:(?P<which>[AB])\.weight|embedding_(?P<other>[AB]))$")
_VECTOR = re.compile(r"^(?P<module>.+)\.ia3_l$")
PROMPT = "prompt_embeddings"

_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways of drawing A and B that leave the base as it was; others (PiSSA, OLoRA, LoftQ, CorDA) change it."""

_KNOWN = {
    "alpha_pattern", "auto_mapping", "eva_config", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
    "feedforward_modules", "init_ia3_weights",
    "encoder_hidden_size", "init_weights", "num_attention_heads", "num_layers", "num_transformer_submodules",
    "num_virtual_tokens", "prefix_projection", "token_dim",
}  # fmt: skip
"""Settings under which an adapter is what is read here. Any other that is set is refused: it may change what tensors mean."""

_REASONS = {
    "use_dora": "its update is normalised by the base's columns, so sums of updates are no update",
    "lora_bias": "its factors carry biases, so the update is no product of two factors",
    "layer_replication": "it copies layers of the base",
    "trainable_token_indices": "it trains single rows of the embeddings",
    "target_parameters": "it has factors for parameters that are no modules",
    "alora_invocation_tokens": "it acts on a part of the text only",
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter, opened by its header.

    Attributes:
        kind: lora, ia3 or prefix.
        checkpoint: its tensors, and its config.
        keys: stored tensors by module: A and B, or the one vector; of a prefix the one table, under its own name.
        whole: stored tensors of modules that were trained as a whole (heads), by parameter name.
        record: what langmerge wrote beside it; empty for others.
    """

    kind: Kind
    checkpoint: Checkpoint
    keys: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, str]
    record: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.checkpoint.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """Its adapter_config.json."""
        return self.checkpoint.config

    @property
    def layers(self) -> int:
        """Of a prefix: number of layers."""
        return int(self.config["num_layers"])

    def shapes(self, module: str) -> tuple[tuple[int, ...], ...]:
        """Of its stored tensors."""
        return tuple(self.checkpoint.tensors[key].shape for key in self.keys[module])

    def size(self, module: str) -> tuple[int, ...]:
        """What the base must have for this module: (out, in), or the vector's or table's shape."""
        found = self.shapes(module)
        return (found[1][0], found[0][1]) if self.kind == "lora" else found[0]

    def dtype(self, module: str) -> str:
        """Of its first stored tensor, as safetensors names it."""
        return self.checkpoint.tensors[self.keys[module][0]].dtype

    def scale(self, module: str) -> float:
        """LoRA: what the product is multiplied by, patterns and rank-stabilised scaling included."""
        alpha = pattern_value(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        rank = self.shapes(module)[0][0]
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def factors(self, module: str) -> Factors:
        """LoRA: the factors of one module, float32.

        Raises:
            CheckpointError: they hold NaN or infinity.
        """
        a, b = (self.checkpoint.read_finite(key) for key in self.keys[module])
        return Factors(a, b, self.scale(module))

    def tensor(self, module: str) -> Tensor:
        """(IA)³ or prefix: the vector or table, float32.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        return self.checkpoint.read_finite(self.keys[module][0])

    def signature(self) -> str:
        """12 hexadecimal digits for weights and settings."""
        return adapter_signature(self.checkpoint)


def open_parsed(folder: Path | str) -> Adapter:
    """Open an adapter's folder.

    Raises:
        CheckpointError: no adapter, or one of a kind or with settings for which there is no exact rule; says which.
    """
    checkpoint = open_adapter(folder)
    config = checkpoint.config
    kind = _KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise CheckpointError(
            f"adapter {folder} is {config.get('peft_type')!r}: there are rules for {', '.join(_KINDS)}"
        )
    _check(checkpoint, kind)
    keys: dict[str, list[str]] = {}
    whole: dict[str, str] = {}
    for key in checkpoint.tensors:
        name = _START.sub("", key)
        if kind == "lora" and (found := _FACTOR.match(name)):
            keys.setdefault(found["module"], []).append(key)
        elif kind == "ia3" and (found := _VECTOR.match(name)):
            keys[found["module"]] = [key]
        elif kind == "prefix" and name == PROMPT:
            keys[PROMPT] = [key]
        elif "lora_" in name or "ia3_" in name or PROMPT in name:
            raise CheckpointError(f"adapter {folder}: tensor {key!r} is of a kind that has no exact rule")
        else:
            whole[name] = key
    if not keys:
        raise CheckpointError(f"adapter {folder} has no {kind} tensors")
    file = Path(folder) / RECORD
    record = read_json(file) if file.is_file() else {}
    made = Adapter(kind, checkpoint, {m: tuple(sorted(own)) for m, own in keys.items()}, whole, record)
    _check_shapes(made)
    return made


def pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """What a pattern of PEFT's config has for a module: a key is the whole of its name or the end, behind a dot."""
    found = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _check(checkpoint: Checkpoint, kind: Kind) -> None:
    config, folder = checkpoint.config, checkpoint.folder
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"adapter {folder} began with init_lora_weights: {start!r}, which changes the base: convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"adapter {folder} trains biases (bias: {config['bias']}): only bias: none is exact"
        )
    if kind == "prefix" and config.get("num_transformer_submodules", 1) != 1:
        raise CheckpointError(f"adapter {folder} has prefixes for an encoder and a decoder: there is no rule")
    odd = (key for key in sorted(config) if config[key] and key not in (*_KNOWN, "bias", "runtime_config"))
    if (key := next(odd, None)) is not None:
        reason = _REASONS.get(key, "what its tensors mean with it is not known here")
        raise CheckpointError(f"adapter {folder} has {key}: {reason}")


def _check_shapes(adapter: Adapter) -> None:
    for module in adapter.keys:
        found = adapter.shapes(module)
        if adapter.kind == "lora":
            if len(found) != 2:
                raise CheckpointError(f"adapter {adapter}: {module!r} has one of lora_A and lora_B alone")
            if any(len(shape) != 2 for shape in found) or found[0][0] != found[1][1]:
                raise CheckpointError(
                    f"adapter {adapter}: factors {found[1]} × {found[0]} of {module!r} are no product of matrices"
                )
            if not adapter.scale(module):
                raise CheckpointError(f"adapter {adapter}: alpha is 0 for {module!r}, so it changes nothing")
        elif adapter.kind == "prefix" and (
            len(found[0]) != 2
            or found[0][1] % (2 * int(adapter.config.get("num_layers") or 0) or found[0][1] + 1)
        ):
            raise CheckpointError(
                f"adapter {adapter}: its table of shape {found[0]} is not keys and values of "
                f"{adapter.config.get('num_layers')} layers"
            )
