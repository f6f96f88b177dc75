from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from qmop.vtcbench.natural.labels import Label, choose, labels_digest, rank, read_labels


def label(source: str, name: str, dimension: str | None) -> Label:
    return Label(source=source, id=name, decision="accept" if dimension else "reject", dimension=dimension)


@pytest.fixture
def some() -> list[Label]:
    return [label("mme", "existence/a/1", "GU"), label("gqa", "20", None), label("gqa", "21", "SC")]


def test_both_formats_say_the_same(tmp_path: Path, some: list[Label]) -> None:
    lines, table = tmp_path / "l.jsonl", tmp_path / "l.csv"
    lines.write_text("".join(one.to_json(model="m") + "\n" for one in some) + "\n")
    with table.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(["source", "id", "decision", "dimension", "note"])
        writer.writerows([one.source, one.id, one.decision.title(), (one.dimension or "").lower(), "x"] for one in some)

    assert read_labels(lines) == read_labels(table) == {one.name: one for one in some}
    assert labels_digest(some) == labels_digest(reversed(some))
    assert labels_digest(some) != labels_digest([*some[:2], label("gqa", "21", "LD")])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"source": "gqa"', "is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"source": "gqa", "id": "1"}', "has no decision, dimension"),
        (
            '{"source": "vqa", "id": "1", "decision": "accept", "dimension": "GU"}',
            "source is 'vqa'",
        ),
        ('{"source": "gqa", "id": "1", "decision": "maybe", "dimension": "GU"}', "decision is 'maybe'"),
        ('{"source": "gqa", "id": "1", "decision": "accept", "dimension": "XX"}', "dimension is 'XX', an accepted"),
        ('{"source": "gqa", "id": "1", "decision": "accept", "dimension": null}', "dimension is None, an accepted"),
        ('{"source": "gqa", "id": "1", "decision": "reject", "dimension": "GU"}', "though the sample is rejected"),
        ('{"source": "gqa", "id": 20, "decision": "accept", "dimension": "GU"}', "gqa 20 is labelled a second time"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, some: list[Label], line: str, said: str) -> None:
    file = tmp_path / "l.jsonl"
    file.write_text(some[1].to_json() + "\n" + line + "\n")

    with pytest.raises(ValueError, match=rf"l\.jsonl line 2.*{said}"):
        read_labels(file)


def test_no_file_of_labels_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make it with `qmop label`"):
        read_labels(tmp_path / "none.jsonl")


def test_a_choice_is_even_over_the_sources_as_far_as_they_go() -> None:
    labels = [label("gqa", str(number), "LD") for number in range(50)]
    labels += [label("textvqa", str(number), "LD") for number in range(3)]
    labels += [label("seed", str(number), "LD") for number in range(20)]
    labels += [label("seed", f"s{number}", "SE") for number in range(4)] + [label("seed", "no", None)]
    chosen = choose(labels, 15, seed=0)

    assert Counter((source, chosen[source, name]) for source, name in chosen) == {
        ("gqa", "LD"): 6, ("seed", "LD"): 6, ("textvqa", "LD"): 3, ("seed", "SE"): 4,
    }  # fmt: skip
    assert len(choose(labels, None, seed=0)) == 77


def test_a_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    labels = [label("gqa", str(number), "LD") for number in range(50)]

    assert choose(labels, 10, seed=1) == choose(labels[::-1], 10, seed=1)
    assert choose(labels, 10, seed=1) != choose(labels, 10, seed=2)
    assert set(choose(labels, 5, seed=1)) < set(choose(labels, 10, seed=1))
    assert rank(1, "gqa", "1") != rank(1, "seed", "1")
