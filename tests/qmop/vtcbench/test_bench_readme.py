from __future__ import annotations

from pathlib import Path

import qmop.vtcbench
from qmop.vtcbench.dimensions import FAMILIES


def test_the_table_lists_every_family_as_it_is() -> None:
    text = Path(qmop.vtcbench.__file__).with_name("README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert rows == [
        f"| {f.dimension} | `{f.task}` | {f.template.replace('{}', '_')} | {len(f.answers)} | {f.unit} |"
        for f in FAMILIES
    ]
