"""Compiled kernels, where the package was built with them; torch does the same arithmetic where not."""

import os
from types import ModuleType

from langmerge.errors import InputError

OPERATIONS = {"combine": 0, "ties": 1, "dare_linear": 2, "dare_ties": 3}
"""Operations of the `merge` kernel by name."""

ELECTIONS = {"sum": 0, "count": 1, "unweighted": 2}
"""How the `merge` kernel elects signs, by name."""

DTYPE_CODES = {"F32": 0, "BF16": 1, "F16": 2, "F64": 3, "F8_E4M3": 4, "F8_E5M2": 5}
"""Stored dtypes that the kernels read and write, by safetensors' name."""

CHOICE = "LANGMERGE_KERNELS"
"""Environment variable: `compiled` (an error where they are missing) or `torch`; by default what is there."""


def compiled_kernels() -> ModuleType | None:
    """The compiled kernels, or None where they were not built or are not wanted.

    Raises:
        InputError: `LANGMERGE_KERNELS` is `compiled` and they are not there, or has another value.
    """
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "compiled", "torch"):
        raise InputError(f"{CHOICE} is {choice!r}: it must be 'compiled' or 'torch'")
    if choice == "torch":
        return None
    try:
        from langmerge.kernels import _compiled
    except ImportError:
        if choice == "compiled":
            raise InputError(
                f"{CHOICE} is 'compiled', but this installation has no compiled kernels: "
                "install a C compiler (gcc or clang) and langmerge again"
            ) from None
        return None
    found: ModuleType = _compiled
    return found
