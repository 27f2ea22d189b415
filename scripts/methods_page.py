"""Write docs/methods.md from the methods' own docstrings: python scripts/methods_page.py > docs/methods.md."""

import inspect
import sys
import textwrap

from langmerge.engine.compiled import OWN
from langmerge.methods import METHODS, SPECS
from langmerge.methods.mixing import MIXINGS

HEAD = """# The methods

Written by `scripts/methods_page.py` from the docstrings; change them there.

Notation: θ_0 base, θ_i source i, τ_i = θ_i − θ_0, w_i weights, N sources; everything per tensor unless said otherwise.
`average` is `linear` with no coefficients given; a similarity-weighted merge is `linear` (or any other method) with the
coefficients of `langmerge select`. Every method is also a function: `lm.METHODS[name](base, tuned, weights, **parameters)`.

Where sources are experts of one task, they nearly agree, and sum-type settings (Σ w_i > 1) overshoot: default weights are
1/N, so defaults are mean-like, and the receipt reports ‖τ_m‖ / mean ‖τ_i‖.
"""

SEEN = {
    "entry": "an entry of every source",
    "row": "a row of every source",
    "tensor": "the whole tensor of every source",
}

STATISTICS = {
    "fisher": "its diagonal Fisher, from `langmerge learn fisher`",
    "grams": "the Grams of its layers' inputs, from `langmerge learn gram`",
}


def main() -> None:
    """Print the page."""
    parts = [HEAD, table(), *(section(name) for name in METHODS)]
    sys.stdout.write("\n".join(parts))


def table() -> str:
    """All methods in one table."""
    lines = ["| name | what it does | sources | arithmetic |", "|---|---|---|---|"]
    for name in METHODS:
        first = summary(name).replace("|", "\\|")
        lines.append(f"| [`{name}`](#{name}) | {first} | {count(name)} | {kernel(name)} |")
    return "\n".join(lines) + "\n"


def section(name: str) -> str:
    """One method: equation, parameters, source, conventions."""
    parts = docstring_parts(name)
    spec = SPECS[name]
    lines = [f"## {name}", parts["summary"], "", "```", parts["equation"], "```", ""]
    if spec.parameters:
        lines += ["| parameter | default | |", "|---|---|---|"]
        meanings = arguments(parts.get("Args", ""))
        for key, parameter in spec.parameters.items():
            default = "–" if parameter.default is None else f"`{parameter.default}`"
            meaning = meanings.get(
                key, "`tensor` by tensor, `model` over the whole model" if key == "scope" else ""
            )
            lines.append(f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
        lines.append("")
    lines += [f"Sees at once: {SEEN[spec.sees]}. Sources: {count(name)}. Arithmetic: {kernel(name)}."]
    if spec.statistics:
        key, value = spec.statistics_unless or ("", None)
        unless = f" (not with `{key}: {value:g}`)" if isinstance(value, float) else ""
        lines += [f"Reads statistics of every source{unless}: {STATISTICS[spec.statistics]}."]
    if spec.matrices:
        lines += ["For the encoder's weight matrices: vectors, embeddings and heads get the weighted mean."]
    lines += ["", f"**Source.** {flat(parts['Source'])}", ""]
    if "Conventions" in parts:
        lines += [f"**Conventions.** {flat(parts['Conventions'])}", ""]
    return "\n".join(lines)


def docstring_parts(name: str) -> dict[str, str]:
    """The docstring cut at its headings."""
    text = inspect.getdoc(METHODS[name]) or ""
    found = {"summary": text.split("\n", 1)[0]}
    heading, lines = "equation", []
    for line in text.split("\n")[1:]:
        if line.rstrip(":") in ("Args", "Raises", "Returns", "Source", "Conventions") and line.endswith(":"):
            found[heading] = "\n".join(lines).strip("\n")
            heading, lines = line[:-1], []
        else:
            lines.append(line)
    found[heading] = "\n".join(lines).strip("\n")
    return found


def arguments(text: str) -> dict[str, str]:
    """`name: meaning` of an Args section, continued lines joined."""
    found: dict[str, str] = {}
    key = ""
    for line in textwrap.dedent(text).split("\n"):
        if line and not line.startswith(" ") and ":" in line:
            key, _, meaning = line.partition(":")
            found[key] = meaning.strip()
        elif key:
            found[key] += " " + line.strip()
    return {key: meaning.strip() for key, meaning in found.items()}


def summary(name: str) -> str:
    """The first line."""
    return docstring_parts(name)["summary"]


def flat(text: str) -> str:
    """A section as one paragraph."""
    return " ".join(text.split())


def count(name: str) -> str:
    """How many sources a method merges."""
    low, high = SPECS[name].sources
    return f"{low}" if low == high else ("any" if low == 1 else f"{low} or more")


def kernel(name: str) -> str:
    """Who does the arithmetic."""
    return "compiled" if name in OWN or name in MIXINGS else "torch"


if __name__ == "__main__":
    main()
