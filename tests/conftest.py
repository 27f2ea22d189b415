"""Run the shape annotations, on one thread."""

import os

from jaxtyping import install_import_hook

# Before anything imports torch; the suite's processes and those it starts share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports these packages: what is loaded already stays as it is.
install_import_hook(["langmerge.methods", "langmerge.results", "langmerge.selection"], "beartype.beartype")
