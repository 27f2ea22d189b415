from typing import Any

import numpy as np
import pytest

from langmerge.engine.token_ids import renumbered
from langmerge.engine.vocabulary import Alignment
from langmerge.errors import CheckpointError

CONFIG = {
    "vocab_size": 4,
    "pad_token_id": 1,
    "eos_token_id": [2, 3],
    "bos_token_id": None,
    "image_token_index": 3,
    "forced_token_id": -1,
    "some_token_id": True,
    "hidden_size": 1,
    "text_config": {"vocab_size": 4, "sep_token_id": 0},
    "vision_config": {"vocab_size": 77},
    "suppress_tokens": [1, 9],
}


def alignment_of(pieces: int, **rows: Any) -> Alignment:
    return Alignment(pieces, {name: np.array(own, np.int64) for name, own in rows.items()}, {})


def test_token_ids_of_the_config_follow_their_pieces() -> None:
    found = alignment_of(6, one=[-1, 3, 0, 1, -1, 2])
    assert renumbered(CONFIG, found, "one", 4) == {
        "vocab_size": 6,
        "pad_token_id": 3,
        "eos_token_id": [5, 1],
        "bos_token_id": None,
        "image_token_index": 1,
        "forced_token_id": -1,
        "some_token_id": True,
        "hidden_size": 1,
        "text_config": {"vocab_size": 6, "sep_token_id": 2},
        "vision_config": {"vocab_size": 77},
        "suppress_tokens": [3, 9],
    }
    assert CONFIG["pad_token_id"] == 1
    assert renumbered(CONFIG, alignment_of(4), "one", 4) == CONFIG


def test_a_token_of_the_config_that_the_output_lacks() -> None:
    with pytest.raises(CheckpointError, match="eos_token_id 3 of one stands for a piece that the output's"):
        renumbered(CONFIG, alignment_of(3), "one", 4)
