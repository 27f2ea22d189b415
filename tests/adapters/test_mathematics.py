"""METHODS' checks on the formulas: LoRA as products, (IA)³ as ratios, prefixes as maps among tokens."""

import pytest
import torch

from langmerge.adapters import ia3, lora, prefix
from langmerge.adapters.lora import Bases, Factors

ROWS, COLUMNS = 9, 11


def drawn(seed: int, rank: int = 3, scale: float = 2.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, COLUMNS, generator=generator, dtype=torch.float64)
    return Factors(a, torch.randn(ROWS, rank, generator=generator, dtype=torch.float64), scale)


def moved(one: Factors, two: Factors, three: Factors, t: float) -> torch.Tensor:
    return lora.stacked([one, two.times(t), three.times(-t)]).product()


ONE, TWO, THREE = drawn(1), drawn(2, rank=2, scale=0.5), drawn(3, rank=4, scale=1.5)


def test_the_stack_is_the_sum() -> None:
    expected = ONE.product() + 0.7 * (TWO.product() - THREE.product())
    torch.testing.assert_close(moved(ONE, TWO, THREE, 0.7), expected, rtol=0, atol=1e-12)
    whole = lora.stacked([ONE, TWO.times(0.7), THREE.times(-0.7)])
    assert (whole.rank, whole.scale) == (9, ONE.scale)
    assert torch.equal(whole.a[:3], ONE.a)
    assert torch.equal(whole.b[:, :3], ONE.b)


def test_by_hand() -> None:
    """1 × 1: 2·3·5 + 0.5 (1·7·1 − 4·1·0.5) = 32.5."""
    one = Factors(torch.tensor([[5.0]]), torch.tensor([[3.0]]), 2.0)
    two = Factors(torch.tensor([[1.0]]), torch.tensor([[7.0]]), 1.0)
    three = Factors(torch.tensor([[0.5]]), torch.tensor([[1.0]]), 4.0)
    assert float(moved(one, two, three, 0.5)) == 32.5


def test_identities() -> None:
    assert torch.equal(moved(ONE, TWO, THREE, 0.0), ONE.product())
    torch.testing.assert_close(moved(ONE, TWO, TWO, 1.0), ONE.product(), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved(THREE, TWO, THREE, 1.0), TWO.product(), rtol=0, atol=1e-12)
    empty = Factors(TWO.a, torch.zeros_like(TWO.b), TWO.scale)
    assert torch.equal(moved(ONE, empty, empty, 1.0), ONE.product())


def test_linear_in_t() -> None:
    at = {t: moved(ONE, TWO, THREE, t) for t in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(at[3.0] - at[0.0], 3 * (at[1.0] - at[0.0]), rtol=0, atol=1e-11)


def test_other_factors_of_the_same_updates() -> None:
    """(B G⁻¹, G A) is the same update: products agree to 1e-12, factors apart do not."""
    g = torch.randn(3, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    one, two, three = drawn(1), drawn(2), drawn(3)
    turned = Factors(g @ two.a, two.b @ torch.linalg.inv(g), two.scale)
    torch.testing.assert_close(turned.product(), two.product(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        moved(one, turned, three, 1.0), moved(one, two, three, 1.0), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(lora.gram([turned, three]), lora.gram([two, three]), rtol=1e-12, atol=1e-12)
    apart = [lora.factors_apart(one, x, three, 1.0).product() for x in (two, turned)]
    assert float((apart[0] - apart[1]).norm()) > 0.1 * float(apart[0].norm())


def test_a_shared_a_makes_both_modes_one() -> None:
    a = drawn(0).a
    one, two, three = (Factors(a, drawn(seed).b, 2.0) for seed in (1, 2, 3))
    apart = lora.factors_apart(one, two, three, 0.8).product()
    torch.testing.assert_close(apart, moved(one, two, three, 0.8), rtol=0, atol=1e-12)


def test_norms_and_cosines_are_the_products() -> None:
    x, y = ONE.product(), TWO.product() - THREE.product()
    blocks = [TWO, THREE.times(-1)]
    assert lora.norm([ONE]) == pytest.approx(float(x.norm()), rel=1e-12)
    assert lora.norm(blocks) == pytest.approx(float(y.norm()), rel=1e-12)
    expected = float((x * y).sum() / (x.norm() * y.norm()))
    assert lora.compare([ONE], blocks) == pytest.approx(
        (float(x.norm()), float(y.norm()), expected), rel=1e-12
    )
    assert lora.compare([ONE], []) == (pytest.approx(float(x.norm())), 0.0, 0.0)
    pairs = [[float((i.product() * j.product()).sum()) for j in (ONE, TWO, THREE)] for i in (ONE, TWO, THREE)]
    torch.testing.assert_close(lora.gram([ONE, TWO, THREE]), torch.tensor(pairs, dtype=torch.float64))


def test_what_cancels_is_zero() -> None:
    turned = Factors(2 * TWO.a, TWO.b / 2, TWO.scale)
    assert lora.compare([ONE], [turned, TWO.times(-1)])[1:] == (0.0, 0.0)
    near = Factors(TWO.a, TWO.b * (1 + 1e-5), TWO.scale)
    assert lora.norm([near, TWO.times(-1)]) == pytest.approx(1e-5 * lora.norm([TWO]), rel=1e-2)


@pytest.mark.parametrize("rank", [1, 4, 9, 50])
def test_recompression_is_the_best_of_its_rank(rank: int) -> None:
    blocks = [ONE, TWO, THREE.times(-1)]
    whole = lora.stacked(blocks).product()
    made, lost, size = lora.recompressed(blocks, rank)
    u, s, vh = torch.linalg.svd(whole)
    best = u[:, :rank] * s[:rank] @ vh[: len(s)][:rank]
    torch.testing.assert_close(made.product(), best, rtol=0, atol=1e-10)
    assert made.rank == min(rank, 9)
    assert lost == pytest.approx(float(s[rank:].norm()), abs=1e-10)
    assert float((whole - made.product()).norm()) == pytest.approx(lost, abs=1e-9)
    assert size == pytest.approx(float(whole.norm()), rel=1e-12)
    torch.testing.assert_close(made.a.norm(dim=1), made.b.norm(dim=0))


def test_of_a_matrix_and_of_its_factors() -> None:
    whole = lora.stacked([ONE, TWO])
    (made, lost, size), by_factors = lora.of_matrix(whole.product(), 2), lora.recompressed([ONE, TWO], 2)
    torch.testing.assert_close(made.product(), by_factors[0].product(), rtol=0, atol=1e-10)
    assert (lost, size) == pytest.approx(by_factors[1:])


def test_the_core_space_loses_nothing() -> None:
    blocks = [ONE, TWO, Factors(ONE.a, TWO.b @ torch.ones(2, 3, dtype=torch.float64), 1.0)]
    bases = Bases.of(blocks)
    assert (bases.left.shape, bases.right.shape) == ((9, 8), (8, 11))
    for one in blocks:
        torch.testing.assert_close(
            bases.factors(bases.core(one)).product(), one.product(), rtol=0, atol=1e-11
        )
    total = sum(bases.core(one) for one in blocks)
    assert isinstance(total, torch.Tensor)
    torch.testing.assert_close(
        bases.factors(total).product(), lora.stacked(blocks).product(), rtol=0, atol=1e-11
    )


def test_correlation_of_starts() -> None:
    assert lora.correlation(ONE.a, ONE.a + 0) == pytest.approx(1)
    assert abs(lora.correlation(torch.randn(8, 400), torch.randn(8, 400))) < 0.1
    assert lora.correlation(ONE.a, TWO.a) == 0.0


# (IA)³.

L1, L2, L3 = (
    torch.tensor(v, dtype=torch.float64) for v in ([2.0, 1.0, -3.0], [1.5, 4.0, 1.0], [1.0, 2.0, 0.5])
)


def test_ratios_by_hand() -> None:
    ratio, clipped = ia3.quotient(L2, L3, None)
    assert (ratio.tolist(), clipped) == ([1.5, 2.0, 2.0], 0)
    assert ia3.by_ratio(L1, ratio, 0.5).tolist() == [2.5, 1.5, -4.5]
    torch.testing.assert_close(ia3.by_ratio(L1, ratio, 1.0), L1 * L2 / L3)
    torch.testing.assert_close(ia3.geometric(ia3.geometric(L1, ratio, 0.5), ratio, 0.5), L1 * L2 / L3)
    torch.testing.assert_close(ia3.geometric(L1, ratio, 1.0), ia3.by_ratio(L1, ratio, 1.0))


@pytest.mark.parametrize("combine", [ia3.by_ratio, ia3.geometric])
def test_vectors_identities(combine) -> None:  # type: ignore[no-untyped-def]
    ratio, _ = ia3.quotient(L2, L3, None)
    assert torch.equal(combine(L1, ratio, 0.0), L1)
    assert torch.equal(combine(L1, ia3.quotient(L2, L2, None)[0], 1.0), L1)
    torch.testing.assert_close(combine(L3, ratio, 1.0), L2)


def test_faulty_entries_and_clipping() -> None:
    two, three = torch.tensor([1.0, 1.0, -1.0, 0.0, 9.0, 1.0]), torch.tensor([1.0, 0.0, 2.0, 2.0, 1.0, -1e-9])
    assert ia3.faulty(two, three).tolist() == [False, True, True, True, False, True]
    ratio, clipped = ia3.quotient(two, three, 4.0)
    assert (ratio.tolist(), clipped) == ([1.0, 4.0, 0.25, 0.25, 4.0, 0.25], 5)


def test_sums_and_products_of_vectors() -> None:
    assert ia3.summed([L1, L2], [0.5, 0.5]).tolist() == ((L1 + L2) / 2).tolist()
    assert ia3.summed([L1], [0.0]).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(ia3.multiplied([L2, L3], [1.0, -1.0]), L2 / L3)
    assert ia3.signs_differ([L1, L2]).tolist() == [False, False, True]


# Prefixes.


def tokens(seed: int, n: int = 4, d: int = 6, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if rank is not None:
        made = made[:, :rank] @ torch.randn(rank, d, generator=generator, dtype=torch.float64)
    return made


@pytest.mark.parametrize("form", prefix.FORMS)
def test_prefix_identities(form: str) -> None:
    p1, p2, p3 = tokens(1), tokens(2), tokens(3)
    assert torch.equal(prefix.moved(p1, p2, p3, 0.0, form), p1)
    torch.testing.assert_close(prefix.moved(p1, p2, p2, 1.0, form), p1)
    # P1 = P3 at full row rank: P2 P3⁺ P3, which is P2 where P3's rows span P2's.
    square = tokens(4, n=4, d=4)
    torch.testing.assert_close(prefix.moved(square, tokens(5, 4, 4), square, 1.0, form), tokens(5, 4, 4))
    at = [prefix.moved(p1, p2, p3, t, form) for t in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(at[2] - at[0], 2 * (at[1] - at[0]))


def test_forms_agree_at_full_rank_and_only_there() -> None:
    p1, p2, p3 = tokens(1), tokens(2), tokens(3)
    torch.testing.assert_close(prefix.moved(p1, p2, p3, 0.6, "safe"), prefix.moved(p1, p2, p3, 0.6, "paper"))
    poor = tokens(3, rank=2)
    assert (prefix.row_rank(poor), prefix.row_rank(p3)) == (2, 4)
    torch.testing.assert_close(prefix.moved(p1, poor, poor, 1.0, "safe"), p1)
    assert float((prefix.moved(p1, poor, poor, 1.0, "paper") - p1).norm()) > 0.1


def test_the_map_works_on_tokens_not_on_dimensions() -> None:
    """2 tokens of 1 dimension, P3 = e1: what P2 adds to token 1 is added in proportion to P1's token 1."""
    p3, p2, p1 = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.5]]), torch.tensor([[4.0], [7.0]])
    assert prefix.moved(p1, p2, p3, 1.0).tolist() == [[4.0], [9.0]]


def test_tables_by_layer() -> None:
    table = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 24)
    layered = prefix.by_layer(table, 3)
    assert layered.shape == (6, 2, 4)
    # Token 1's value in layer 0 is the second stretch of its row.
    assert layered[1, 1].tolist() == table[1, 4:8].tolist()
    assert torch.equal(prefix.as_table(layered), table)
