"""What the output of a mergekit recipe gets beside its weights: config, label map, tokenizer, chat template."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from langmerge.checkpoint import Checkpoint, read_json
from langmerge.engine.mergekit_layout import layer_counts
from langmerge.engine.plan import Companions, TensorPlan
from langmerge.engine.token_ids import renumbered
from langmerge.engine.union_tokenizer import union_tokenizer
from langmerge.engine.vocabulary import UNION, Alignment, align, tokenizer_faults, vocabulary_size
from langmerge.errors import CheckpointError, PlanError
from langmerge.mergekit_recipe import MergekitRecipe

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_BESIDE_A_UNION = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of the first model that hold for the union too; a sentencepiece model or a list of merges does not."""


def aligned_vocabularies(
    recipe: MergekitRecipe, opened: Mapping[str, Checkpoint], faults: list[str]
) -> Alignment | None:
    """How the vocabularies fit together, as `tokenizer_source` says; None where all are taken as they are."""
    if recipe.tokenizer_source is None:
        found: list[str] = []
        tokenizer_faults(None, opened, found)
        faults += [f"{fault}, or set tokenizer_source" for fault in found]
        return None
    reference = recipe.tokenizer_reference
    if reference is not None and reference not in opened:
        faults.append(
            f"tokenizer_source {reference} is none of the models: name one of {', '.join(opened)}, base or union"
        )
        return None
    sizes = {
        name: vocabulary_size({t: i.shape for t, i in one.tensors.items()}) for name, one in opened.items()
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    if unknown := [name for name in sizes if name not in known]:
        faults.append(
            f"tokenizer_source: the input embeddings of {', '.join(unknown)} were not found: remove it"
        )
        return None
    try:
        return align({name: one.folder for name, one in opened.items()}, known, reference or UNION)
    except PlanError as error:
        faults += error.faults
        return None


def companions_of(
    recipe: MergekitRecipe,
    opened: Mapping[str, Checkpoint],
    tensors: Iterable[TensorPlan],
    labels: tuple[str, ...] | None,
    aligned: Alignment | None,
    faults: list[str],
) -> Companions:
    """Everything beside the weights; the donor is base_model, or the first model if it lacks the head or is not given."""
    written = [tensor for tensor in tensors if tensor.treatment != "dropped"]
    donor = recipe.references[0]
    if any(tensor.treatment == "mean" for tensor in written):
        donor = next(name for name in recipe.references if name != donor)
    config: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    first = recipe.tokenizer_reference or donor
    folders = [opened[name].folder for name in (first, donor, *opened) if name in opened]
    try:
        if aligned is not None:
            config |= _renumbered("config.json", opened[donor], donor, aligned)
        if aligned is not None and aligned.rows:
            files |= _tokenizer_files(recipe, opened, first, donor, aligned)
            # The files of another model would contradict these.
            folders = [opened[first].folder] if recipe.tokenizer_source != UNION else []
    except CheckpointError as error:
        faults.append(str(error))
    except PlanError as error:
        faults += error.faults
    config |= _layer_entries(recipe, opened, donor, written)
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    # A head beside the embeddings would not be read by a model whose config ties them.
    if any(t.name == "lm_head.weight" for t in written) and opened[donor].config.get(
        "tie_word_embeddings", True
    ):
        config["tie_word_embeddings"] = False
    return Companions(
        opened[donor].folder,
        tuple(dict.fromkeys(folders)),
        config,
        chat_template=_chat_template(recipe, opened),
        tokenizer=files,
    )


def _renumbered(file: str, holder: Checkpoint, name: str, aligned: Alignment) -> dict[str, Any]:
    """The entries of a model's JSON file that name token ids or the vocabulary's size and must be others here."""
    size = vocabulary_size({tensor: info.shape for tensor, info in holder.tensors.items()})
    own = read_json(holder.folder / file)
    found = renumbered(own, aligned, name, size) if size is not None else own
    return {key: value for key, value in found.items() if value != own[key]}


def _tokenizer_files(
    recipe: MergekitRecipe, opened: Mapping[str, Checkpoint], first: str, donor: str, aligned: Alignment
) -> dict[str, bytes]:
    """Files that no model has as the output needs them.

    Raises:
        PlanError: no tokenizer holds the union.
        CheckpointError: a file that cannot be read, or a token id that the output's vocabulary lacks.
    """
    files = {}
    generation, holder = "generation_config.json", opened[donor].folder
    if (holder / generation).exists() and not (opened[first].folder / generation).exists():
        body = read_json(holder / generation) | _renumbered(generation, opened[donor], donor, aligned)
        files[generation] = (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
    if recipe.tokenizer_source == UNION:
        document = union_tokenizer({name: one.folder for name, one in opened.items()})
        files["tokenizer.json"] = json.dumps(document, ensure_ascii=False).encode()
        for name in _BESIDE_A_UNION:
            if (file := opened[first].folder / name).exists():
                files[name] = file.read_bytes()
    return files


def _layer_entries(
    recipe: MergekitRecipe, opened: Mapping[str, Checkpoint], donor: str, written: Iterable[TensorPlan]
) -> dict[str, Any]:
    """How many layers there are, and lists with an entry for each, stacked like the layers."""
    if recipe.slices is None:
        return {}
    config, found = opened[donor].config, dict[str, Any]()
    total = max(layer_counts([tensor.name for tensor in written]).values(), default=0)
    for key in _LAYERS:
        if isinstance(config.get(key), int):
            found[key] = total
    if isinstance(config.get("layer_types"), list):
        found["layer_types"] = [
            opened[source.model].config["layer_types"][layer]
            for source in (group.sources[0] for group in recipe.slices)
            for layer in range(*(source.layer_range or (0, 0)))
        ]
    return {key: value for key, value in found.items() if value != config[key]}


def _chat_template(recipe: MergekitRecipe, opened: Mapping[str, Checkpoint]) -> str | None:
    """The text given; for `auto` the template that most models have, the first in the file's order of equals."""
    if recipe.chat_template != "auto":
        return recipe.chat_template
    texts = [text for one in opened.values() if (text := _template_of(one.folder))]
    return Counter(texts).most_common(1)[0][0] if texts else None


def _template_of(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    settings = folder / "tokenizer_config.json"
    found = read_json(settings).get("chat_template") if settings.exists() else None
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
    if isinstance(found, Mapping):
        found = found.get("default")
    return found.strip() if isinstance(found, str) else ""
