"""For every test that trains."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices are slower with more threads, and far slower when other processes compete for the cores."""
    torch.set_num_threads(1)
