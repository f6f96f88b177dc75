from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.evaluation.discovery import Candidate
from pipelines.evaluation.units import Generation, Unit, commit, facts_of, finished, records_of_ids, results_of
from qmop.vtcbench.records import judge
from qmop.vtcbench.rendered import suite
from qmop.vtcbench.suite import ShardInfo

UNIT = Unit(
    candidate=Candidate(label="a", uri="x", digest="d", method="mlp", budget=0),
    shard=ShardInfo(url="suite-000000.tar", sha256="s", md5="m", count=5, size=1),
    suite_digest="suite",
    generation=Generation(max_new_tokens=8),
)


def records(prediction: str) -> list:
    facts = {"checkpoint": "d", "label": "a", "method": "mlp", "budget": 0, "visual_tokens": 144}
    return [
        judge(rendered.item, prediction, suite_digest="suite", shard="suite-000000.tar", **facts)
        for rendered in suite(0, 5)
    ]


def test_a_unit_is_named_by_what_determines_its_records_and_by_nothing_else() -> None:
    assert replace(UNIT, candidate=replace(UNIT.candidate, uri="moved")).id == UNIT.id
    others = [
        replace(UNIT, candidate=replace(UNIT.candidate, digest="e")),
        replace(UNIT, candidate=replace(UNIT.candidate, label="b")),
        replace(UNIT, shard=replace(UNIT.shard, sha256="t")),
        replace(UNIT, suite_digest="other"),
        replace(UNIT, generation=Generation(max_new_tokens=9)),
    ]
    assert len({unit.id for unit in [UNIT, *others]}) == 6


def test_the_first_commit_stays_whatever_comes_later(tmp_path: Path) -> None:
    store = str(tmp_path)
    assert not finished(UNIT, store)
    assert commit(UNIT, store, records("yes"))
    assert finished(UNIT, store)
    assert not commit(UNIT, store, records("no"))
    assert {record.prediction for record in records_of_ids([UNIT.id], store)} == {"yes"}


def test_a_damaged_file_is_named_or_says_what_it_said(tmp_path: Path) -> None:
    store, draw = str(tmp_path), np.random.default_rng(5)
    commit(UNIT, store, records("yes"), poisoned={"k": "why"})
    path = Path(UNIT.place(store))
    whole, told = path.read_bytes(), results_of([UNIT.id], store)
    refused = unharmed = 0
    for _ in range(400):
        data = bytearray(whole)
        data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(data)
        try:
            found = results_of([UNIT.id], store)
        except ValueError as error:
            refused += str(error).startswith(f"{path} is damaged (")
            continue
        unharmed += found == told
    assert refused + unharmed == 400
    assert refused > 200


def test_answers_that_were_cut_are_summed_by_label(tmp_path: Path) -> None:
    second = replace(UNIT, shard=replace(UNIT.shard, sha256="t"))
    other = replace(UNIT, candidate=replace(UNIT.candidate, label="b"))
    for unit, cut in ((UNIT, 2), (second, 3), (other, 0)):
        commit(unit, str(tmp_path), records("yes"), cut=cut)
    assert results_of([UNIT.id, second.id, other.id], str(tmp_path)).cut == {"a": 5}
    assert "cut" not in facts_of(other.id, str(tmp_path))
