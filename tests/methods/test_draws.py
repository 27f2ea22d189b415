"""Random numbers by counter."""

import hashlib

import pytest
import torch

from langmerge.errors import MethodError
from langmerge.methods.draws import drop_mask, keep_below, random_words, source_keys, stream_key

FULL = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Steele, Lea and Flood 2014, on Python's whole numbers: the mixing of one state."""
    z = state & FULL
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & FULL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & FULL
    return z ^ (z >> 31)


def word(stream: int, position: int) -> int:
    """The number at a position: a half of the position's pair."""
    mixed = splitmix64(stream + (position // 2 + 1) * 0x9E3779B97F4A7C15)
    return mixed >> 32 if position % 2 else mixed & 0xFFFFFFFF


def test_the_generator_is_splitmix64() -> None:
    # The first outputs for the seed 1234567, as they are commonly published.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    halves = random_words(1234567, 0, 6).tolist()
    assert [low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)] == outputs


@pytest.mark.parametrize("stream", [0, 1, 1 << 63, FULL, 0x1234_5678_9ABC_DEF0])
@pytest.mark.parametrize("start", [0, 1, 1_000_001, 2**40 + 7])
def test_words_are_those_of_python(stream: int, start: int) -> None:
    expected = [word(stream, position) for position in range(start, start + 9)]
    assert random_words(stream, start, 9).tolist() == expected


def test_a_stream_is_a_hash_of_seed_and_key() -> None:
    digest = hashlib.sha256(b"7\0layer.0\0de-DE").digest()
    assert stream_key(7, "layer.0\0de-DE") == int.from_bytes(digest[:8], "little")
    # No seed and key that join to the same text.
    assert stream_key(1, "2x") != stream_key(12, "x")


def test_nothing_is_drawn_for_nothing() -> None:
    assert random_words(5, 3, 0).shape == (0,)
    assert drop_mask((0, 4), 0.5, seed=0, key="").shape == (0, 4)
    assert drop_mask((), 1.0, seed=0, key="").item() == 1


@pytest.mark.parametrize("step", [1, 3, 4, 50])
def test_a_mask_in_pieces_is_the_mask(step: int) -> None:
    whole = drop_mask((101,), 0.5, seed=3, key="x")
    pieces = [
        drop_mask((min(step, 101 - start),), 0.5, seed=3, key="x", offset=start)
        for start in range(0, 101, step)
    ]
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(drop_mask((4, 5), 0.5, seed=3, key="x", offset=21).flatten(), whole[21:41])


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_everywhere(density: float) -> None:
    mask = drop_mask((200_000,), density, seed=0, key="x")
    assert sorted(mask.unique().tolist()) == [0, 1]
    # Halves, even and odd places, and runs: five standard errors.
    for part in (mask, mask[:100_000], mask[100_000:], mask[::2], mask[1::2], mask[::1024]):
        error = (density * (1 - density) / len(part)) ** 0.5
        assert float(part.mean()) == pytest.approx(density, abs=5 * error)
    both = float((mask[1:] * mask[:-1]).mean())
    assert both == pytest.approx(density**2, abs=0.006)


def test_words_are_uniform() -> None:
    words = random_words(stream_key(0, "x"), 0, 160_000)
    for bits in (words >> 28, words & 15):
        counts = torch.bincount(bits, minlength=16).double()
        # χ² with 15 degrees of freedom lies below 45 but once in 10,000.
        assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 45


@pytest.mark.parametrize("other", [{"seed": 1}, {"key": "y"}, {"key": "x\0"}], ids=str)
def test_masks_of_other_keys_are_independent(other: dict[str, object]) -> None:
    usual = {"seed": 0, "key": "x"}
    first, second = (drop_mask((40_000,), 0.5, **keys) for keys in (usual, usual | other))
    for shift in (0, 1, 2, 3):
        agree = float((first[shift:] == second[: len(second) - shift]).float().mean())
        assert agree == pytest.approx(0.5, abs=0.0125), shift


def test_the_whole_is_kept_at_density_one() -> None:
    assert keep_below(1.0) == 1 << 32
    assert keep_below(2**-32) == 1
    assert bool(drop_mask((10_000,), 1.0, seed=0, key="x").all())


def test_sources_are_keyed_by_tensor_and_name() -> None:
    assert source_keys("layer.0", ["de-DE", "fr-FR"], 2) == ["layer.0\0de-DE", "layer.0\0fr-FR"]
    assert source_keys("layer.0", None, 2) == ["layer.0\x000", "layer.0\x001"]
    assert source_keys("a", ["bc"], 1) != source_keys("ab", ["c"], 1)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], []])
def test_every_source_needs_a_name(names: list[str]) -> None:
    with pytest.raises(MethodError, match=f"^{len(names)} source names were given for 2 sources$"):
        source_keys("x", names, 2)
