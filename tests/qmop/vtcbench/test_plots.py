from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from qmop.vtcbench import plots
from qmop.vtcbench.records import Record
from qmop.vtcbench.report_types import Report
from qmop.vtcbench.summary import summarise

_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def report(evaluation: list[Record]) -> Report:
    return summarise(evaluation, resamples=200)


def _texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{_SVG}text")]


def test_every_plot_is_sound_xml_in_the_page_s_own_ink(report: Report) -> None:
    branches = plots.branch_weights(report)
    assert branches is not None
    dimensions = plots.accuracy_by_dimension(report)
    assert dimensions is not None
    for svg in (dimensions, branches):
        assert ET.fromstring(svg).tag == f"{_SVG}svg"
        assert "currentColor" in svg
        assert plots.INK not in svg
        assert "metadata" not in svg
        assert "#ffffff" not in svg


def test_the_dimension_plot_names_the_dimensions_and_draws_every_row(report: Report) -> None:
    svg = plots.accuracy_by_dimension(report)
    assert svg is not None
    words = " ".join(_texts(svg))

    assert "Counting" in words
    assert "Details" in words
    for colour in plots.colours(report).values():
        assert colour.replace(plots.INK, "currentColor") in svg


def test_the_branch_plot_names_branches_and_rows(report: Report) -> None:
    svg = plots.branch_weights(report)

    assert svg is not None
    assert {"resampler", "window_pool", "prune", "qmop@16", "LD", "all"} <= set(_texts(svg))


def test_rows_keep_one_colour_and_one_marker_each(report: Report) -> None:
    assert len(set(plots.colours(report).values())) == 4
    assert len(set(plots.markers(report).values())) == 4
    assert plots.colours(report)["blind"] == plots.NEUTRAL
    assert len(set(plots.glyphs(report).values())) == 4


def test_many_rows_differ_in_colour_or_marker(report: Report) -> None:
    many = [report.rows[0], *(replace(report.rows[1], label=f"row {number}") for number in range(40)), report.rows[-1]]
    drawn = replace(report, rows=tuple(many))
    colours, markers = plots.colours(drawn), plots.markers(drawn)
    assert len({(colours[row.label], markers[row.label]) for row in many}) == 42
