"""Models on disk and in memory; the one owner of transformers and tokenizers."""

from importlib.util import find_spec

from langmerge.errors import MissingExtraError

if find_spec("transformers") is None:
    raise MissingExtraError("transformers", extra="models", needed_for="loading and training models")

from langmerge.models.adapted import (
    adapter_base,
    is_adapter,
    load_adapted_classifier,
    load_model,
    model_signature,
)
from langmerge.models.adapters import TARGETS, AdapterShape, add_adapter
from langmerge.models.classifier import (
    keeps_head,
    label_names,
    load_classifier,
    load_tokenizer,
    new_classifier,
    save_classifier,
)
from langmerge.models.compact import cut_embeddings, renumbered, used_rows
from langmerge.models.devices import autocast, autocast_for_gradients, best_device, has_fast_bf16
from langmerge.models.e5_small import PROVENANCE_FILE, build_e5_small
from langmerge.models.encoding import (
    MAX_LENGTH,
    encode,
    encode_with_offsets,
    length_bucketed,
    padded,
    shuffled_batches,
)
from langmerge.models.forms import Form, lm_head, load_form, new_model
from langmerge.models.pooling import add_mean_pooling, pooling_parameters
from langmerge.models.prediction import predict_logits
from langmerge.models.representation import mean_pooled

__all__ = [
    "MAX_LENGTH",
    "PROVENANCE_FILE",
    "TARGETS",
    "AdapterShape",
    "Form",
    "adapter_base",
    "add_adapter",
    "add_mean_pooling",
    "autocast",
    "autocast_for_gradients",
    "best_device",
    "build_e5_small",
    "cut_embeddings",
    "encode",
    "encode_with_offsets",
    "has_fast_bf16",
    "is_adapter",
    "keeps_head",
    "label_names",
    "length_bucketed",
    "lm_head",
    "load_adapted_classifier",
    "load_classifier",
    "load_form",
    "load_model",
    "load_tokenizer",
    "mean_pooled",
    "model_signature",
    "new_classifier",
    "new_model",
    "padded",
    "pooling_parameters",
    "predict_logits",
    "renumbered",
    "save_classifier",
    "shuffled_batches",
    "used_rows",
]
