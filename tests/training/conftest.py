"""For every test that trains."""

from pathlib import Path

import pytest
import torch

from langmerge.tasks import Unlabelled, file_text
from tests.training.half_trained import drawn, write_half_trained


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices are slower with more threads, and far slower when other processes compete for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is half trained."""
    return write_half_trained(tmp_path_factory.mktemp("half_trained"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Unlabelled:
    """Forty texts of a file."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(drawn(40, 3)[0]), encoding="utf-8")
    return file_text(file, locale="sw-KE")
