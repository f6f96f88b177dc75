from __future__ import annotations

from pathlib import Path

import qmop.vtcbench
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.items import DIMENSIONS


def test_the_table_lists_every_family_as_it_is() -> None:
    text = Path(qmop.vtcbench.__file__).with_name("README.md").read_text()
    rows = [line for line in text.splitlines() if "`" in line and line[2:4] in DIMENSIONS]
    assert rows == [
        f"| {f.dimension} | `{f.task}` | {f.template.replace('{}', '_')} | {len(f.answers)} | {f.unit} |"
        for f in FAMILIES
    ]
