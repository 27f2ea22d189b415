import subprocess
import sys

import langmerge.report


def test_all_is_sorted_and_there() -> None:
    assert langmerge.report.__all__ == sorted(langmerge.report.__all__)
    assert all(hasattr(langmerge.report, name) for name in langmerge.report.__all__)


def test_charts_are_loaded_only_when_drawn() -> None:
    code = "import sys, langmerge.report; sys.exit('altair' in sys.modules or 'vl_convert' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
