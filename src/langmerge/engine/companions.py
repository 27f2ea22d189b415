"""What a native merge writes beside its weights: whose config and tokenizer, and what changes in them."""

from collections.abc import Iterable, Mapping
from typing import Any

from langmerge.checkpoint import Checkpoint
from langmerge.engine.plan import Companions, TensorPlan
from langmerge.engine.token_ids import renumbered
from langmerge.engine.vocabulary import Alignment, vocabulary_size

LM_HEAD = "lm_head.weight"

BASE = "the base"
"""How the base is called among the checkpoints of a report."""


def companions(
    donor: Checkpoint,
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    labels: tuple[str, ...] | None,
    aligned: Alignment | None,
    tensors: Iterable[TensorPlan] = (),
) -> Companions:
    """The files that go along.

    Args:
        donor: whose config the output gets.
        base: the base.
        sources: the sources.
        labels: of the output's head.
        aligned: how vocabularies were matched, where they differ.
        tensors: what becomes of each.
    """
    config: dict[str, Any] = {}
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    # A head beside the embeddings is not read where the config ties them, and one that is not there is drawn at random
    # where it does not.
    heads = [one.treatment != "dropped" for one in tensors if one.name == LM_HEAD]
    if heads and donor.config.get("tie_word_embeddings", True) is heads[0]:
        config["tie_word_embeddings"] = not heads[0]
    differ = aligned is not None and not aligned.report["equal"]
    if aligned and differ:
        # Token ids in the donor's config (padding, end of text) are numbers of its own pieces.
        name = BASE if base is not None and donor is base else next(iter(sources))
        size = vocabulary_size({tensor: info.shape for tensor, info in donor.tensors.items()})
        changed = renumbered(donor.config, aligned, name, size) if size is not None else {}
        config |= {key: value for key, value in changed.items() if donor.config[key] != value}
    # The sources' tokenizer is the base's where they are alike: a base may lack it. Where they differ, other models' files
    # number other pieces.
    others = [] if differ else [donor.folder, *(checkpoint.folder for checkpoint in sources.values())]
    folders = [base.folder, *others] if differ else others
    return Companions(donor.folder, tuple(dict.fromkeys(folders)), config)
