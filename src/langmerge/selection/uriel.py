"""What is known of languages: URIEL's syntax, phonology, inventory, family and geography, and how alike two are.

The table beside this file holds all languages of MASSIVE and a few hundred more (scripts/build_typology.py makes it); with
the extra `typology` the package lang2vec answers for the rest of URIEL's languages. Its data files are read, its code is
not. URIEL: Littell et al., 2017, "URIEL and lang2vec", CC BY-SA 4.0; see uriel.LICENSE.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float64, Int64

from langmerge.errors import SelectionError
from langmerge.locales import typology_code

OBSERVED = ("syntax", "phonology", "inventory")
"""Sets of features that somebody has observed, or k-nearest neighbours have filled in."""

FEATURE_SETS = (*OBSERVED, "family", "geography")

SIZES = {"syntax": 103, "phonology": 28, "inventory": 158}
"""Features of each set."""

_PREFIXES = {"syntax": "S_", "phonology": "P_", "inventory": "INV_"}
_LATTICE = 299
_FITS = 2e-4
"""Distances are stored with four digits: a place that fits them worse than this is none."""


@dataclass(frozen=True)
class Typology:
    """A table of languages.

    Attributes:
        codes: under which URIEL has them (ISO 639-3), one row each.
        names: in English; the code where the table has none.
        features: for syntax, phonology and inventory: shape (languages, features).
        observed: how many of a set's features were observed, the others are filled in; shape (languages,).
        families: the classes that each belongs to, from the largest to the smallest; empty if unknown.
        places: latitude and longitude in degrees, shape (languages, 2); NaN if unknown.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    features: Mapping[str, Bool[np.ndarray, "n f"]]
    observed: Mapping[str, Int64[np.ndarray, "n"]]
    families: tuple[tuple[str, ...], ...]
    places: Float64[np.ndarray, "n 2"]

    def among(self, codes: Sequence[str]) -> "Typology":
        """Only these languages, in this order.

        Raises:
            KeyError: one is not in the table.
        """
        place = {code: row for row, code in enumerate(self.codes)}
        rows = [place[code] for code in codes]
        return Typology(
            tuple(codes),
            tuple(self.names[row] for row in rows),
            {name: values[rows] for name, values in self.features.items()},
            {name: values[rows] for name, values in self.observed.items()},
            tuple(self.families[row] for row in rows),
            self.places[rows],
        )

    def vectors(self, of: str) -> Float64[np.ndarray, "n f"]:
        """The vectors of a set of features whose cosines are the similarities; NaN where nothing is known.

        Raises:
            SelectionError: there is no such set.
        """
        if of in OBSERVED:
            return _or_nan(self.features[of].astype(np.float64))
        if of == "family":
            classes = {name: i for i, name in enumerate(sorted({c for own in self.families for c in own}))}
            member = np.zeros((len(self.codes), len(classes)))
            for row, own in enumerate(self.families):
                member[row, [classes[name] for name in own]] = 1
            return _or_nan(member)
        if of == "geography":
            return lattice_distances(self.places)
        raise SelectionError(f"unknown feature set {of!r}: there are {', '.join(FEATURE_SETS)}")

    def similarity(self, of: str) -> Float64[np.ndarray, "n n"]:
        """Cosines of all pairs, in [0, 1]; NaN where one of the two is not known."""
        vectors = self.vectors(of)
        with np.errstate(invalid="ignore"):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(np.clip(unit @ unit.T, 0, 1))

    def share_observed(self, of: str) -> Float64[np.ndarray, "n"]:
        """How much of a set was observed, in [0, 1]: the rest of its vector is a guess by neighbours."""
        if of in OBSERVED:
            return np.asarray(self.observed[of] / SIZES[of])
        known = [bool(own) for own in self.families] if of == "family" else ~np.isnan(self.places).any(axis=1)
        return np.asarray(known, dtype=np.float64)


def _or_nan(vectors: Float64[np.ndarray, "n f"]) -> Float64[np.ndarray, "n f"]:
    """A vector of zeros says nothing."""
    return np.where(vectors.any(axis=1, keepdims=True), vectors, np.nan)


def _lattice() -> Float64[np.ndarray, "p 3"]:
    """URIEL's points of reference on the unit sphere: a spiral with the golden angle."""
    steps = np.arange(1, _LATTICE + 1)
    height = -1 + 2 * steps / _LATTICE
    around = np.radians(180 - 180 * (3 - 5**0.5) * steps)
    wide = np.sqrt(np.maximum(0, 1 - height**2))
    return np.stack([wide * np.cos(around), wide * np.sin(around), height], axis=1)


def lattice_distances(places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n p"]:
    """URIEL's geographic vectors: great-circle distances to its points of reference, 1 for the other side of the earth."""
    latitude, longitude = np.radians(places).T
    points = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=1,
    )
    return np.asarray(np.arccos(np.clip(points @ _lattice().T, -1, 1)) / np.pi)


def places_of(distances: Float64[np.ndarray, "n p"]) -> Float64[np.ndarray, "n 2"]:
    """Latitude and longitude, in degrees, out of URIEL's geographic vectors; NaN where they are those of no place."""
    solved = np.linalg.lstsq(_lattice(), np.cos(np.pi * distances).T, rcond=None)[0].T
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, z = (solved / np.linalg.norm(solved, axis=1, keepdims=True)).T
    places = np.degrees(np.stack([np.arcsin(np.clip(z, -1, 1)), np.arctan2(y, x)], axis=1))
    fits = np.abs(lattice_distances(places) - distances).max(axis=1) < _FITS
    return np.where(fits[:, None], places, np.nan)


COLUMNS = (
    "code", "name", "latitude", "longitude",
    *(f"{name}{what}" for name in OBSERVED for what in ("", "_observed")),
    "family",
)  # fmt: skip


@cache
def shipped() -> Typology:
    """The table that comes with langmerge."""
    with files("langmerge.selection").joinpath("uriel.tsv").open(encoding="utf-8") as handle:
        lines = (line for line in handle if not line.startswith("#"))
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return Typology(
        tuple(row["code"] for row in rows),
        tuple(row["name"] for row in rows),
        {name: np.array([_bits(row[name], size) for row in rows]) for name, size in SIZES.items()},
        {name: np.array([int(row[f"{name}_observed"]) for row in rows]) for name in OBSERVED},
        tuple(tuple(filter(None, row["family"].split(" > "))) for row in rows),
        np.array([[float(row[axis] or "nan") for axis in ("latitude", "longitude")] for row in rows]),
    )


def _bits(digits: str, size: int) -> Bool[np.ndarray, "f"]:
    return np.array([bit == "1" for bit in f"{int(digits, 16):0{size}b}"])


def table_lines(table: Typology) -> Iterable[dict[str, str]]:
    """The rows of uriel.tsv."""
    for row, code in enumerate(table.codes):
        line = {"code": code, "name": table.names[row], "family": " > ".join(table.families[row])}
        for axis, value in zip(("latitude", "longitude"), table.places[row], strict=True):
            line[axis] = "" if np.isnan(value) else f"{value:.4f}"
        for name, size in SIZES.items():
            bits = "".join("1" if bit else "0" for bit in table.features[name][row])
            line[name] = f"{int(bits, 2):0{-(-size // 4)}x}"
            line[f"{name}_observed"] = str(int(table.observed[name][row]))
        yield line


def read_lang2vec(folder: Path, codes: Sequence[str] | None = None) -> Typology:
    """URIEL out of lang2vec 1.1.2's data files.

    Args:
        folder: its `data` folder.
        codes: languages that are wanted; all by default. Codes that it lacks are left out.

    Raises:
        SelectionError: the files are not there.
    """

    def opened(name: str) -> Any:
        try:
            return np.load(folder / f"{name}.npz", allow_pickle=False)
        except (OSError, ValueError, BadZipFile) as error:
            raise SelectionError(f"{folder / name}.npz is not lang2vec's: {error}") from None

    with opened("feature_predictions") as filled, opened("feature_averages") as observed:
        there = [str(code) for code in filled["langs"]]
        kept = there if codes is None else [code for code in codes if code in set(there)]
        rows = [there.index(code) for code in kept]
        names = [str(name) for name in filled["feats"]]
        columns = {
            key: [i for i, name in enumerate(names) if name.startswith(prefix)]
            for key, prefix in _PREFIXES.items()
        }
        values, seen = filled["data"][rows, :, 0], observed["data"][rows, :, 0] >= 0
    with opened("family_features") as family:
        members = family["data"][_rows(family, kept), :, 0] > 0
        classes = [str(name).removeprefix("F_") for name in family["feats"]]
        sizes = (family["data"][:, :, 0] > 0).sum(axis=0)
    with opened("geocoord_features") as geography:
        distances = geography["data"][_rows(geography, kept), :, 0].astype(np.float64)
    return Typology(
        tuple(kept),
        tuple(kept),
        {name: values[:, own] > 0.5 for name, own in columns.items()},
        {name: seen[:, own].sum(axis=1) for name, own in columns.items()},
        tuple(
            tuple(classes[i] for i in sorted(np.flatnonzero(own), key=lambda i: (-sizes[i], classes[i])))
            for own in members
        ),
        places_of(distances),
    )


def _rows(file: Any, codes: Sequence[str]) -> list[int]:
    place = {str(code): row for row, code in enumerate(file["langs"])}
    return [place[code] for code in codes]


def lang2vec_folder() -> Path | None:
    """The data of the package lang2vec, if it is installed. It is found without being run: its import fails on current
    setuptools.
    """
    found = find_spec("lang2vec")
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) / "data" if places else None


def typology_of(languages: Sequence[str]) -> tuple[Typology, dict[str, str]]:
    """What is known of some languages.

    Args:
        languages: locales, codes or English names.

    Returns:
        A table with one row for each language that is known, in their order; and for each of `languages` its code.
        A code without a row is one of which nothing is known.

    Raises:
        LocaleError: one is no language.
    """
    codes = {language: typology_code(language) for language in languages}
    table = shipped()
    wanted = list(dict.fromkeys(codes.values()))
    if set(wanted) <= set(table.codes) or (folder := lang2vec_folder()) is None:
        return table.among([code for code in wanted if code in set(table.codes)]), codes
    return read_lang2vec(folder, wanted), codes
