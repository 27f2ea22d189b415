"""The compiled kernels. An input is (buffer, byte offset, dtype code); all entries are done in one call, without the
interpreter's lock. Wrong sizes, offsets and codes raise ValueError or TypeError; nothing outside a buffer is touched.
"""

from typing import Any

Input = tuple[Any, int, int]

def merge(
    entries: int,
    inputs: tuple[Input, ...],
    base: Input | None,
    op: int,
    about_base: bool,
    election: int,
    normalize: bool,
    weights: Any,
    bounds: Any,
    streams: Any,
    offset: int,
    scale: float,
    out: Input | None,
    squares: Any,
    hashed: Any,
    digests: Any,
    /,
) -> bool:
    """Merge a chunk; ‖τ_i‖² and ‖τ_m‖² are added to `squares` (N + 1, float64). False if something is not finite.

    Where `hashed` (N + 1 bytes, the base's last; or None) is not 0, XXH3-128 of an input's bytes, of which there must be
    more than 240, goes into `digests` (N + 1, 16).
    """

def gram(entries: int, inputs: tuple[Input, ...], base: Input | None, out: Any, /) -> bool:
    """Dot products of the sources, or with a base of their deltas, into `out` (N, N) float64."""

def dots(
    entries: int, inputs: tuple[Input, ...], base: Input, gradient: Any, bounds: Any, out: Any, /
) -> bool:
    """⟨g, τ_i⟩ of a float32 gradient with every delta into `out` (N,) float64.

    With `bounds` (N,) float32 the τ_i are first trimmed to magnitudes of at least these, and of what is left only the
    entries with the sign of their sum are taken.
    """

def count(
    entries: int,
    inputs: tuple[Input, ...],
    base: Input | None,
    low: Any,
    span: int,
    shift: int,
    counts: Any,
    /,
) -> bool:
    """Add to `counts` (N, 1 + (span >> shift)) int64: magnitudes of at least low + span, then a histogram from low on."""

def select(
    entries: int, inputs: tuple[Input, ...], base: Input | None, ranks: Any, space: Any, out: Any, /
) -> bool:
    """The magnitude of each rank (1 for the largest) into `out` (N,) float32; `space` is (entries,) uint32."""

def instructions(name: str = ..., /) -> str:
    """The instruction set in use: avx512, avx2 or plain; with a name, use that one from now on."""
