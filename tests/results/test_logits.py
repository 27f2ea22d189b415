from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from jaxtyping import Float32
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from langmerge.results import Logits, kept_logits, load_logits

ANY = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
USUAL = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-60, 60, width=32)
)


def logits(values: list[list[float]], *, labels: list[int] | None = None, ids: str = "abcdefgh") -> Logits:
    rows = len(values)
    return Logits(
        signature="0123456789ab",
        ids=tuple(ids[:rows]),
        labels=np.array(labels if labels is not None else [0] * rows, dtype=np.int64),
        values=np.array(values, dtype=np.float32).reshape(rows, -1),
    )


def test_predictions_and_what_is_right() -> None:
    some = logits([[0.1, 2.0, 0.3], [3.0, -1.0, 0.0], [0.0, 0.0, 5.0]], labels=[1, 2, 2])
    assert some.predictions.tolist() == [1, 0, 2]
    assert some.correct.tolist() == [True, False, True]
    assert some.correct.dtype == np.bool_


def same(one: Logits, other: Logits) -> bool:
    """Whether every field agrees, kinds of numbers included."""
    arrays_of = [(one.labels, other.labels), (one.values, other.values)]
    return (one.signature, one.ids) == (other.signature, other.ids) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in arrays_of
    )


def softmax(values: Float32[np.ndarray, "n c"]) -> np.ndarray:
    odds = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    shares: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
    return shares


def test_logits_are_kept_as_differences_to_the_largest() -> None:
    values = np.array([[1.0, 3.0, 2.5], [-7.0, -7.0, -8.0], [2.0, 2.0, 2.0]], dtype=np.float32)
    found = kept_logits(values)
    assert found.dtype == np.float32
    assert found.tolist() == [[-2.0, 0.0, -0.5], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]


def test_numbers_are_rounded_to_half_precision() -> None:
    """Between 2 and 4 its steps are 2⁻⁹."""
    values = np.array([[0.0, -(2 + 0.7 * 2**-9)]], dtype=np.float32)
    assert kept_logits(values).tolist() == [[0.0, -(2 + 2**-9)]]


@settings(deadline=None, max_examples=100)
@given(USUAL)
def test_kept_logits_have_the_same_probabilities(values: Float32[np.ndarray, "n c"]) -> None:
    # x e⁻ˣ ≤ 1/e: a relative error of 2⁻¹¹ in each of five logits moves no probability by a thousandth.
    np.testing.assert_allclose(softmax(kept_logits(values)), softmax(values), atol=1e-3)


@settings(deadline=None, max_examples=200)
@given(ANY)
def test_kept_logits_have_the_same_predictions(values: Float32[np.ndarray, "n c"]) -> None:
    np.testing.assert_array_equal(kept_logits(values).argmax(axis=1), values.argmax(axis=1))


@settings(deadline=None, max_examples=100)
@given(ANY)
def test_kept_logits_are_kept_as_they_are(values: Float32[np.ndarray, "n c"]) -> None:
    once = kept_logits(values)
    assert np.isfinite(once).all()
    assert once.max() == 0
    np.testing.assert_array_equal(kept_logits(once), once)
    np.testing.assert_array_equal(once.astype(np.float16), once)


def test_very_small_differences_do_not_become_ties() -> None:
    """A tie would go to the first."""
    values = np.array([[1e-9, 2e-9], [-3e-8, 0.0], [1.0, np.nextafter(np.float32(1), np.float32(2))]])
    found = kept_logits(values.astype(np.float32))
    assert found.argmax(axis=1).tolist() == [1, 1, 1]
    assert found.min() > -1e-6


def test_what_has_no_probability_stays_finite() -> None:
    values = np.array([[-np.inf, 0.0, -3e38], [3e38, -1.0, 3e38]], dtype=np.float32)
    found = kept_logits(values)
    assert np.isfinite(found).all()
    assert found.argmax(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(softmax(found), [[0, 1, 0], [0.5, 0, 0.5]])


def test_logits_come_back_from_their_file(tmp_path: Path) -> None:
    kept = logits([[-1.5, 0.0], [0.0, -4.0]], labels=[1, 0])
    path = tmp_path / "test" / "sw-KE" / "de-DE.safetensors"
    kept.save(path)
    found = load_logits(path, kept.signature)
    assert found is not None
    assert same(found, kept)
    assert (found.labels.dtype, found.values.dtype) == (np.int64, np.float32)
    assert [file.name for file in path.parent.iterdir()] == ["de-DE.safetensors"]


@settings(deadline=None, max_examples=25)
@given(USUAL)
def test_whatever_is_brought_into_the_form_comes_back(
    tmp_path_factory: pytest.TempPathFactory, values: Float32[np.ndarray, "n c"]
) -> None:
    made = logits(kept_logits(values).tolist())
    path = tmp_path_factory.mktemp("kept") / "x.safetensors"
    made.save(path)
    found = load_logits(path, made.signature)
    assert found is not None
    assert same(found, made)


def test_the_file_is_safetensors_in_half_precision_with_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    logits([[-1.5, 0.0], [0.0, -4.0]], labels=[1, 0]).save(path)
    with safe_open(path, "numpy") as kept:
        assert set(kept.metadata()) == {"signature", "hash"}
    columns = load_file(path)
    assert {name: (str(column.dtype), column.shape) for name, column in columns.items()} == {
        "logits": ("float16", (2, 2)),
        "labels": ("int64", (2,)),
        "ids": ("uint8", (3,)),
    }


@pytest.mark.parametrize("values", [[[0.1, 2.0]], [[1e6, 0.0]], [[2049.0, 0.0]], [[float("nan"), 0.0]]])
def test_what_half_precision_cannot_hold_is_not_written(tmp_path: Path, values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="bring them into the form of kept_logits"):
        logits(values).save(tmp_path / "new" / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_no_rows_come_back(tmp_path: Path) -> None:
    kept = Logits("s", (), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.float32))
    kept.save(tmp_path / "x.safetensors")
    found = load_logits(tmp_path / "x.safetensors", "s")
    assert found is not None
    assert same(found, kept)


def test_ids_are_text_of_any_language(tmp_path: Path) -> None:
    kept = Logits("s", ("zażółć", "1"), np.zeros(2, dtype=np.int64), np.zeros((2, 1), dtype=np.float32))
    kept.save(tmp_path / "x.safetensors")
    found = load_logits(tmp_path / "x.safetensors", "s")
    assert found is not None
    assert found.ids == ("zażółć", "1")


def test_another_signature_is_refused(tmp_path: Path) -> None:
    kept = logits([[-2.0, 0.0]])
    kept.save(tmp_path / "x.safetensors")
    assert load_logits(tmp_path / "x.safetensors", "ba9876543210") is None
    assert load_logits(tmp_path / "y.safetensors", kept.signature) is None


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / ".kept.tmp", tmp_path / ".kept.1.tmp"]
    for one in others:
        one.write_text("half")
    logits([[0.0, -1.0]]).save(tmp_path / "kept")
    assert all(one.read_text() == "half" for one in others)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".kept.1.tmp", ".kept.tmp", "kept"]


def test_a_later_file_replaces_an_earlier_one(tmp_path: Path) -> None:
    logits([[-2.0, 0.0]]).save(tmp_path / "x.safetensors")
    second = logits([[0.0, -3.0], [0.0, 0.0]])
    second.save(tmp_path / "x.safetensors")
    found = load_logits(tmp_path / "x.safetensors", second.signature)
    assert found is not None
    assert same(found, second)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    kept = logits([[float(row), 2.0] for row in range(8)])
    path = tmp_path / "x.safetensors"
    kept.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    assert load_logits(path, kept.signature) is None
    path.write_bytes(whole)
    assert load_logits(path, kept.signature) is not None


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no archive at all")
    assert load_logits(path, "s") is None
    with path.open("wb") as file:
        np.savez(file, signature="s", ids=np.array(["a"]))
    assert load_logits(path, "s") is None
    for metadata in (None, {"signature": "s"}, {"hash": "s"}):
        save_file({"logits": np.zeros((1, 2), dtype=np.float16)}, path, metadata=metadata)
        assert load_logits(path, "s") is None


def test_a_changed_byte_anywhere_is_refused(tmp_path: Path) -> None:
    """In the data always; in the header unless it says the same in another way (a space more)."""
    kept = logits([[-1.0, 0.0, -2.5], [0.0, -3.0, -60_000.0]], labels=[2, 0])
    path = tmp_path / "x.safetensors"
    kept.save(path)
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    refused = set()
    for place, byte in enumerate(whole):
        for other in {byte ^ 1, byte ^ 0x80, *b"CIU2"} - {byte}:
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            found = load_logits(path, kept.signature)
            assert found is None or (place < data and same(found, kept)), (place, byte, other)
            if found is None:
                refused.add(place)
    assert set(range(data, len(whole))) <= refused
