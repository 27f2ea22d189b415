from pathlib import Path

import numpy as np
import pytest

from langmerge.results import Logits, load_logits, soft_vote


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


def test_logits_come_back_from_their_file(tmp_path: Path) -> None:
    kept = logits([[0.1, 2.0], [3.0, -1.0]], labels=[1, 0])
    path = tmp_path / "test" / "sw-KE" / "de-DE.npz"
    kept.save(path)
    found = load_logits(path, kept.signature)
    assert found is not None
    assert (found.signature, found.ids) == (kept.signature, ("a", "b"))
    np.testing.assert_array_equal(found.labels, kept.labels)
    np.testing.assert_array_equal(found.values, kept.values)
    assert (found.labels.dtype, found.values.dtype) == (np.int64, np.float32)
    assert [file.name for file in path.parent.iterdir()] == ["de-DE.npz"]


def test_ids_are_text_of_any_language(tmp_path: Path) -> None:
    kept = Logits("s", ("zażółć", "1"), np.zeros(2, dtype=np.int64), np.zeros((2, 1), dtype=np.float32))
    kept.save(tmp_path / "x.npz")
    found = load_logits(tmp_path / "x.npz", "s")
    assert found is not None
    assert found.ids == ("zażółć", "1")


def test_another_signature_is_refused(tmp_path: Path) -> None:
    kept = logits([[0.1, 2.0]])
    kept.save(tmp_path / "x.npz")
    assert load_logits(tmp_path / "x.npz", "ba9876543210") is None
    assert load_logits(tmp_path / "y.npz", kept.signature) is None


def test_a_later_file_replaces_an_earlier_one(tmp_path: Path) -> None:
    logits([[0.1, 2.0]]).save(tmp_path / "x.npz")
    second = logits([[5.0, 2.0], [1.0, 1.0]])
    second.save(tmp_path / "x.npz")
    found = load_logits(tmp_path / "x.npz", second.signature)
    assert found is not None
    assert len(found.ids) == 2


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    kept = logits([[float(row), 2.0] for row in range(8)])
    path = tmp_path / "x.npz"
    kept.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    assert load_logits(path, kept.signature) is None
    path.write_bytes(whole)
    assert load_logits(path, kept.signature) is not None


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"no archive at all")
    assert load_logits(path, "s") is None
    with path.open("wb") as file:
        np.savez(file, signature="s", ids=np.array(["a"]))
    assert load_logits(path, "s") is None


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    kept = logits([[1.0, 2.0]])
    path = tmp_path / "x.npz"
    kept.save(path)
    data = bytearray(path.read_bytes())
    place = data.rindex(np.float32([1.0, 2.0]).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert load_logits(path, kept.signature) is None


def test_a_soft_vote_by_hand() -> None:
    """Probabilities (3/4, 1/4) and (1/5, 4/5)."""
    members = [logits([[np.log(3.0), 0.0]]), logits([[0.0, np.log(4.0)]])]
    np.testing.assert_allclose(np.exp(soft_vote(members)), [[0.475, 0.525]], rtol=1e-6)
    weighted = np.exp(soft_vote(members, [3.0, 1.0]))
    np.testing.assert_allclose(weighted, [[(2.25 + 0.2) / 4, (0.75 + 0.8) / 4]], rtol=1e-6)


def test_a_vote_of_one_keeps_its_probabilities() -> None:
    one = logits([[1.0, 2.0, -1.0], [0.0, 0.0, 9.0]])
    shares = np.exp(one.values) / np.exp(one.values).sum(axis=1, keepdims=True)
    found = soft_vote([one])
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), shares, rtol=1e-5)


def test_a_vote_does_not_depend_on_scale_of_weights_or_on_shifted_logits() -> None:
    one, other = logits([[1.0, 2.0], [0.5, -3.0]]), logits([[4.0, 1.0], [0.0, 0.0]])
    shifted = logits((other.values + 100).tolist())
    expected = soft_vote([one, other], [0.2, 0.6])
    np.testing.assert_allclose(soft_vote([one, shifted], [1.0, 3.0]), expected, atol=1e-5)
    np.testing.assert_allclose(soft_vote([other, one], [0.6, 0.2]), expected, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    found = soft_vote([logits([[1e4, 0.0]]), logits([[0.0, 1e4]])])
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.5]])
    assert np.isfinite(soft_vote([logits([[1e4, 0.0]])])).all()


def test_a_vote_is_over_the_same_rows() -> None:
    with pytest.raises(ValueError, match="different rows"):
        soft_vote([logits([[1.0, 2.0]]), logits([[1.0, 2.0]], ids="b")])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [2.0, -0.5]])
def test_weights_of_no_vote(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="soft vote with weights"):
        soft_vote([logits([[1.0, 2.0]])] * 2, weights)


def test_as_many_weights_as_members() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        soft_vote([logits([[1.0, 2.0]])] * 2, [1.0])
