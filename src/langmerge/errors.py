"""Every error that langmerge raises on purpose.

LangmergeError
├── InputError            something given is wrong; the message names it and the way out
│   ├── LocaleError       a locale that is not known or not available
│   ├── DataError         a data file: missing, malformed, an unknown label
│   ├── CheckpointError   a model folder: missing, unreadable, NaN, wrong shape
│   ├── PoolError         pool.yaml and what it lists
│   ├── RecipeError       a recipe or coefficients file
│   ├── MethodError       an unknown method or parameter, or a value outside its range
│   ├── SelectionError    k, target or scores from which no sources can be chosen
│   ├── OutputError       the place to write to
│   ├── StoreError        a store of results: it cannot be opened or written, or is newer than this version
│   ├── VerifyError       a merged model that is not what its receipt says, or has none
│   └── PlanError         a list of faults found before anything was written
├── MissingExtraError     an optional package is not installed; the message has the command
└── TrainingError         training went wrong (a loss that is not finite)

The command line turns each into one line on stderr and exit status 2.
"""

from collections.abc import Sequence


class LangmergeError(Exception):
    """Root of the tree."""


class InputError(LangmergeError):
    """Something given is wrong."""


class LocaleError(InputError):
    """A locale that is not known or not available."""


class DataError(InputError):
    """A data file is missing, malformed or has an unknown label."""


class CheckpointError(InputError):
    """A model folder is missing, unreadable or holds what cannot be merged."""


class PoolError(InputError):
    """`pool.yaml`, or what it lists, is wrong."""


class RecipeError(InputError):
    """A recipe or coefficients file is wrong."""


class MethodError(InputError):
    """An unknown method or parameter, or a value outside its range."""


class SelectionError(InputError):
    """No sources can be chosen from what was given."""


class OutputError(InputError):
    """The place to write to exists already or cannot be written."""


class StoreError(InputError):
    """A store of results cannot be opened or written, or was made by a newer version."""


class VerifyError(InputError):
    """A merged model is not what its receipt says, or has none."""


class PlanError(InputError):
    """Every fault of a recipe at once.

    Args:
        faults: one sentence each, naming the thing and the way out.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class MissingExtraError(LangmergeError):
    """An optional package is not installed.

    Args:
        package: what could not be imported.
        extra: langmerge's extra that brings it.
        needed_for: what was asked for.
    """

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed: pip install 'langmerge[{extra}]'"
        )


class TrainingError(LangmergeError):
    """Training went wrong."""
