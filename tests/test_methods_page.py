"""docs/methods.md says what the docstrings say."""

import subprocess
import sys
from pathlib import Path

from langmerge.methods import METHODS

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "methods_page.py"], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == made.stdout, "run: python scripts/methods_page.py > docs/methods.md"
    assert all(f"\n## {name}\n" in page for name in METHODS)
