"""Options that several commands have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.errors import InputError
from langmerge.locales import canonical_locale

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder with massive/ and sib200/ (default: $LANGMERGE_DATA, else ../shared/data)."
    ),
]
Locales = Annotated[str, typer.Option("--locales", help="Locales, separated by commas.")]
PoolArgument = Annotated[Path, typer.Argument(help="The pool's folder.", metavar="POOL")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where results are: a file (SQLite) or postgresql://USER@HOST/NAME (default: OUT/store.sqlite).",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", min=1)]
MaxTrain = Annotated[
    int | None,
    typer.Option("--max-train", min=1, help="At most so many training rows per locale (parallel ids)."),
]
MaxDev = Annotated[int, typer.Option("--max-dev", min=1, help="Dev rows for the choice of the epoch.")]
Rate = Annotated[float, typer.Option("--lr", min=1e-12, help="Peak learning rate of the body.")]
HeadRate = Annotated[float, typer.Option("--head-lr", min=1e-12, help="Peak learning rate of the head.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
FreezeEmbeddings = Annotated[
    bool,
    typer.Option(
        "--freeze-embeddings/--no-freeze-embeddings",
        help="Leave the word embeddings as they are in the base.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many rows of each locale.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", help="A parameter of the method, name=value; may be repeated.", metavar="NAME=VALUE"
    ),
]


def unread(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that were given and that nothing reads.

    Args:
        options: by name; None where one was not given.
        why: nothing reads them.

    Raises:
        InputError: one was given.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(given)}: {why}; leave {'it' if len(given) == 1 else 'them'} out")


def locale_list(text: str) -> list[str]:
    """`en-US,de-DE` as a list without repeats, in one spelling.

    Raises:
        InputError: nothing in it.
        LocaleError: one is no locale.
    """
    found = [canonical_locale(part) for part in text.split(",") if part.strip()]
    if not found:
        raise InputError("--locales is empty: give one or more, like sw-KE,cy-GB")
    return list(dict.fromkeys(found))


def parameter_values(pairs: list[str] | None) -> dict[str, Any]:
    """`density=0.2` pairs as a mapping; values are read as YAML scalars.

    Raises:
        InputError: a pair without a name or an equals sign.
    """
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InputError(f"-p {pair!r} is no parameter: write name=value, like -p density=0.2")
        found[name] = yaml.safe_load(value)
    return found


def source_count(text: str) -> int | None:
    """`5` or `all` (None).

    Raises:
        InputError: neither a whole number of 1 or more nor `all`.
    """
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"-k is {text!r}: give a number of sources, 1 or more, or all")
    return int(text)


def named_numbers(text: str, option: str) -> dict[str, float]:
    """`de-DE=0.7,fr-FR=0.5` as a mapping.

    Raises:
        InputError: a part that is no name and number, or a name that comes twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip() or name.strip() in found:
            raise InputError(f"{option} {text!r}: write NAME=NUMBER,…, each name once; {part!r} is not")
        found[name.strip()] = number
    if not found:
        raise InputError(f"{option} is empty: write NAME=NUMBER,…")
    return found
