"""The page on faults names tests, and every one of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
NUM_REPORTS = 19


def test_every_report_names_a_test_that_exists() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == NUM_REPORTS
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            assert re.search(
                rf"^(async )?def {name}\(|^{name} = |^class {name}\b", (ROOT / path).read_text(), re.MULTILINE
            ), name
