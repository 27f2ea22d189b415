"""XLM-R's unigram tokenizer out of a list of pieces, and the part of its vocabulary that some texts use."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from langmerge.errors import CheckpointError, MissingExtraError

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""In id order 0…3; `<mask>` is the last piece."""

_TEXTS_AT_ONCE = 10_000


def unigram_tokenizer(pieces: Sequence[str], scores: np.ndarray, *, charsmap: bytes) -> Tokenizer:
    """Return XLM-R's tokenizer over these pieces: `<s> text </s>`, words marked by a leading ▁.

    Args:
        pieces: in id order; the first four are `<s> <pad> </s> <unk>`, the last is `<mask>`.
        scores: log probabilities, the same length.
        charsmap: SentencePiece's compiled normalisation map.

    Raises:
        CheckpointError: the special tokens are not where XLM-R has them.
    """
    if list(pieces[:4]) != list(SPECIAL_TOKENS.values()) or pieces[-1] != "<mask>":
        raise CheckpointError(
            f"The pieces begin with {list(pieces[:4])} and end with {pieces[-1]!r}; "
            "expected <s> <pad> </s> <unk> … <mask>"
        )
    tokenizer = Tokenizer(
        Unigram(list(zip(pieces, scores.tolist(), strict=True)), unk_id=3, byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    # `<mask>` takes the space before it, as in XLM-R, so that "a <mask>" has no stray ▁.
    tokenizer.add_special_tokens(
        [*SPECIAL_TOKENS.values(), AddedToken("<mask>", lstrip=True, normalized=False)]
    )
    return tokenizer


def used_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Return which piece ids occur when the texts are tokenised.

    Returns:
        Sorted ids, int64; the specials of the template are among them when there is a text.
    """
    seen = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for chunk in _chunks(texts):
        for encoding in tokenizer.encode_batch_fast(chunk):
            seen[encoding.ids] = True
    return np.flatnonzero(seen)


def kept_rows(scores: np.ndarray, *, used: np.ndarray, keep_first: int) -> np.ndarray:
    """Return the old ids that stay, in their old order: used, the first `keep_first`, and the special tokens.

    The piece with the lowest score stays too, because an unknown character costs that score less ten:
    without it a text with unknown characters could be cut differently than before.

    Args:
        scores: float32, one for each old id.
        used: old ids that the texts use.
        keep_first: how many of the first (most frequent) pieces stay in any case, at least 4.
    """
    keep = np.zeros(len(scores), dtype=bool)
    keep[used] = True
    keep[: max(keep_first, len(SPECIAL_TOKENS))] = True
    keep[-1] = True
    keep[int(np.argmin(scores))] = True
    return np.flatnonzero(keep)


def nmt_nfkc_map() -> bytes:
    """Return SentencePiece's compiled map for the rule `nmt_nfkc`, XLM-R's normalisation.

    The library has no call for the map alone, so a toy model is trained with the rule and its map read out.

    Raises:
        MissingExtraError: sentencepiece is not installed.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "sentencepiece", extra="offline", needed_for="The tokenizer of the base 'e5-small'"
        ) from error
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_writer=model,
        vocab_size=7,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    # ModelProto.normalizer_spec is field 3; NormalizerSpec.precompiled_charsmap is field 2.
    return _protobuf_field(_protobuf_field(model.getvalue(), 3), 2)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, _TEXTS_AT_ONCE)):
        yield chunk


def _protobuf_field(message: bytes, number: int) -> bytes:
    """Return the first length-delimited field with this number."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            length, at = _varint(message, at)
            if field == number:
                return message[at : at + length]
            at += length
    raise CheckpointError(f"A SentencePiece model without field {number}: sentencepiece 0.2 is expected")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
