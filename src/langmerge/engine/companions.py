"""What a native merge writes beside its weights: whose config and tokenizer, and what changes in them."""

from collections.abc import Mapping
from typing import Any

from langmerge.checkpoint import Checkpoint
from langmerge.engine.plan import Companions
from langmerge.engine.token_ids import renumbered
from langmerge.engine.vocabulary import Alignment, vocabulary_size

BASE = "the base"
"""How the base is called among the checkpoints of a report."""


def companions(
    donor: Checkpoint,
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    labels: tuple[str, ...] | None,
    aligned: Alignment | None,
) -> Companions:
    """The files that go along.

    Args:
        donor: whose config the output gets.
        base: the base.
        sources: the sources.
        labels: of the output's head.
        aligned: how vocabularies were matched, where they differ.
    """
    config: dict[str, Any] = {}
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    differ = aligned is not None and not aligned.report["equal"]
    if aligned and differ:
        # Token ids in the donor's config (padding, end of text) are numbers of its own pieces.
        name = BASE if base is not None and donor is base else next(iter(sources))
        size = vocabulary_size({tensor: info.shape for tensor, info in donor.tensors.items()})
        changed = renumbered(donor.config, aligned, name, size) if size is not None else {}
        config |= {key: value for key, value in changed.items() if donor.config[key] != value}
    # The sources' tokenizer is the base's where they are alike: a base may lack it.
    first = [base.folder] if differ else []
    folders = [*first, donor.folder, *(checkpoint.folder for checkpoint in sources.values())]
    return Companions(donor.folder, tuple(dict.fromkeys(folders)), config)
