"""The compiled kernels: optional, so that a machine without a C compiler installs the package all the same."""

import sys

from setuptools import Extension, setup

# Neither fused multiply-adds nor other liberties: the compiled kernels and torch give the same bits.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]

setup(
    ext_modules=[
        Extension(
            "langmerge.kernels._compiled",
            ["src/langmerge/kernels/_compiled.c"],
            depends=["src/langmerge/kernels/_chunk.h", "src/langmerge/kernels/_xxh3.h"],
            extra_compile_args=FLAGS,
            libraries=[] if sys.platform == "win32" else ["m"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
