"""Run the shape annotations, on one thread."""

import os
import signal

from jaxtyping import install_import_hook

# A suite that was started in the background ignores Ctrl-C; its tests of interrupts must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before anything imports torch; the suite's processes and those it starts share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports these packages: what is loaded already stays as it is.
install_import_hook(["langmerge.methods", "langmerge.results", "langmerge.selection"], "beartype.beartype")
