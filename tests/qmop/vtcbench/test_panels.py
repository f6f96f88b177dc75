from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from qmop.cost import Cost
from qmop.profiler import Profile
from qmop.vtcbench import panels, plots
from qmop.vtcbench.panels import Spot
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Report
from qmop.vtcbench.summary import summarise

_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def report(evaluation: list[Record], cost: Cost, measured: Profile) -> Report:
    labels = ("uncompressed", "qmop@16", "average_pool@16")
    return summarise(
        evaluation, resamples=200, costs=dict.fromkeys(labels, cost), profiles=dict.fromkeys(labels, measured)
    )


def _texts(svg: str | None) -> list[str]:
    assert svg is not None
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{_SVG}text")]


def test_every_plot_is_sound_xml_in_the_page_s_own_ink(report: Report) -> None:
    for draw in (
        panels.accuracy_by_tokens,
        panels.accuracy_by_difficulty,
        panels.accuracy_by_macs,
        panels.accuracy_by_prefill,
    ):
        svg = draw(report)
        assert svg is not None
        assert ET.fromstring(svg).tag == f"{_SVG}svg"
        assert "currentColor" in svg
        assert plots.INK not in svg
        assert "metadata" not in svg


def test_tokens_have_a_panel_per_dimension_and_a_tick_per_budget(report: Report) -> None:
    words = _texts(panels.accuracy_by_tokens(report))

    assert {"all items (micro)", "Global Understanding", "Local Details"} <= set(words)
    assert (words.count("16"), words.count("144")) == (6, 6)


def test_difficulty_has_a_panel_per_unit(report: Report) -> None:
    words = _texts(panels.accuracy_by_difficulty(report))

    assert words.count("Global Understanding") == 2
    assert {"objects on the other side", "steps", "patches across the detail"} <= set(words)


def test_cost_and_time_are_drawn_where_they_are_known(report: Report, evaluation: list[Record]) -> None:
    assert "method and language model, GMAC per picture (log scale)" in _texts(panels.accuracy_by_macs(report))
    assert "measured prefill, ms per question (log scale)" in _texts(panels.accuracy_by_prefill(report))

    bare = summarise([replace(record, difficulty=None) for record in evaluation], resamples=50)

    assert panels.accuracy_by_macs(bare) is None
    assert panels.accuracy_by_prefill(bare) is None
    assert panels.accuracy_by_difficulty(bare) is None


def test_costs_are_those_of_method_and_language_model_and_times_those_of_one_question(
    report: Report, cost: Cost
) -> None:
    row = report.row("qmop@16")
    assert row is not None
    assert panels._giga(row) == pytest.approx((cost.reading + cost.projector + cost.language) / 1e9)
    assert panels._prefill(row) == pytest.approx(12.0 / 8)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    spots = [Spot("a", 2, 50), Spot("b", 1, 40), Spot("c", 3, 50), Spot("d", 4, 70), Spot("e", 2, 45), Spot("f", 5, 60)]

    assert [spot.label for spot in panels.front(spots)] == ["b", "a", "d"]
    assert panels.front([]) == []


def test_rows_of_equal_tokens_do_not_cover_each_other(answered: Callable[..., list[Record]]) -> None:
    report = summarise([*answered("a", bool), *answered("b", bool), *answered("c", bool)], resamples=100)

    places = [row.visual_tokens * shift for row, shift in panels.side_by_side(plots.seeing(report))]

    assert len(set(places)) == 3
    assert places[1] == pytest.approx(16)


def test_a_line_joins_the_budgets_of_one_method(answered: Callable[..., list[Record]]) -> None:
    records = [
        *answered("a", lambda i: i < 20, method="m", budget=36),
        *answered("b", lambda i: i < 10, method="m"),
        *answered("c", lambda i: i < 14, method="m"),
        *answered("d", bool, method="other"),
    ]
    report = summarise(records, resamples=50)

    lines = panels._joined(list(report.rows), {row.label: row.micro for row in report.rows})

    assert lines == [([16.0, 36.0], [pytest.approx(30.0), pytest.approx(50.0)])]
