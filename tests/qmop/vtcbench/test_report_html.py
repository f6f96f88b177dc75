from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from qmop.cost import Cost
from qmop.profiler import Profile
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.records import Record
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.report_html import pick_samples, to_html, with_drawings, worth_showing
from qmop.vtcbench.report_types import Report
from qmop.vtcbench.summary import summarise

_VOID = {"meta", "link", "img", "br", "path", "use"}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "action"}:
                self.addresses.append(value or "")


@pytest.fixture
def report(evaluation: list[Record]) -> Report:
    return summarise(evaluation, resamples=500, provenance={"recipe": "abc123"})


def test_the_page_refers_to_nothing_outside_itself(
    report: Report, evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    samples = pick_samples(evaluation, {r.item.key: r.image for r in small_suite})
    text = to_html(report, samples)
    page = _Page(text)

    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.tags["script"] == page.tags["iframe"] == 0
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.open == []


def test_ids_are_unique_and_every_inner_reference_is_met(report: Report) -> None:
    text = to_html(report)
    page = _Page(text)

    assert len(set(page.ids)) == len(page.ids)
    referred = {*re.findall(r"url\(#([^)]+)\)", text), *(a[1:] for a in page.addresses if a.startswith("#"))}
    assert referred
    assert referred <= set(page.ids)


def test_every_row_stands_in_the_table_with_value_interval_and_count(report: Report) -> None:
    words = " ".join(_Page(to_html(report)).words)

    for row in report.rows:
        assert row.label in words
        assert row.checkpoint in words
        assert f"{100 * row.micro.value:.1f}" in words
        assert f"{100 * row.micro.low:.1f}\u2013{100 * row.micro.high:.1f}" in words
    assert "n = 40" in words
    assert "below uncompressed (p" in words
    assert "abc123" in words
    assert report.suite_digest in words


def test_plots_without_data_are_left_out(
    report: Report, evaluation: list[Record], cost: Cost, measured: Profile
) -> None:
    labels = [row.label for row in report.rows]
    known = summarise(evaluation, costs=dict.fromkeys(labels, cost), profiles=dict.fromkeys(labels, measured))
    bare = summarise([replace(r, branch_weights=None, difficulty=None) for r in evaluation], resamples=500)

    assert _Page(to_html(known)).tags["svg"] == 6
    assert _Page(to_html(report)).tags["svg"] == 4
    assert _Page(to_html(bare)).tags["svg"] == 2


def test_levels_costs_and_times_are_shown_where_they_are_known(
    report: Report, evaluation: list[Record], cost: Cost, measured: Profile
) -> None:
    levelled = [replace(record, level="held_out" if i % 4 else "core") for i, record in enumerate(evaluation)]
    known = summarise(levelled, resamples=100, costs={"qmop@16": cost}, profiles={"qmop@16": measured})
    shown, plain = (" ".join(" ".join(_Page(to_html(one)).words).split()) for one in (known, report))

    for words in ("Accuracy by level", "held-out n = 30", "22.0 8.40 1.50", "1.50 1.38\u20131.62", "a device"):
        assert words in shown
    for words in ("Accuracy by level", "GMAC", "quartiles"):
        assert words not in plain
    assert "--inspect true" in plain
    assert "--inspect true" not in shown


def test_loss_has_reverse_share_and_floor_beside_it(
    report: Report, evaluation: list[Record], answered: Callable[..., list[Record]]
) -> None:
    second = answered("second", lambda i: i % 10 != 8, budget=144, method="uncompressed")
    known = summarise([*evaluation, *second], floor="second", resamples=100)
    shown, plain = (" ".join(" ".join(_Page(to_html(one)).words).split()) for one in (known, report))

    assert "information loss floor 11.1 reverse share floor 100.0 visual gain" in shown
    assert "information loss reverse share visual gain" in plain
    assert "The floor is what second" in shown
    assert "--floor LABEL" in plain
    assert "--floor LABEL" not in shown
    gain = known.rows[2].against_reference.gain  # type: ignore[union-attr]
    assert gain is not None
    assert f"{100 * gain.value:.1f} {100 * gain.low:.1f}\u2013{100 * gain.high:.1f} n = 4" in shown


def test_task_families_have_a_table_with_their_chance(report: Report) -> None:
    words = " ".join(" ".join(_Page(to_html(report)).words).split())
    row = report.rows[0].tasks["place"]

    assert "Accuracy by task family" in words
    low, high = 100 * row.low, 100 * row.high
    assert f"place SC n = 2 11.1 {100 * row.value:.1f} {low:.1f}\u2013{high:.1f}" in words


def test_sources_have_a_table_with_mean_retention_and_mme(report: Report, evaluation: list[Record]) -> None:
    tasks = ["gqa", "mme/OCR", "mme/code_reasoning"]
    places = [i % 40 for i in range(len(evaluation))]
    natural = [
        replace(record, task=tasks[i % 3], key=f"{tasks[i % 3]}-{i // 6}_{i}")
        for record, i in zip(evaluation, places, strict=True)
    ]
    found = summarise(natural, resamples=50)
    shown, plain = (" ".join(" ".join(_Page(to_html(one)).words).split()) for one in (found, report))
    row = found.rows[1]

    assert "Accuracy by source" in shown
    assert row.mme is not None
    assert f"{100 * row.mean_retention:.1f} {row.mme.perception:.1f} of 200" in shown  # type: ignore[operator]
    assert "Accuracy by source" not in plain
    assert "MME" not in plain


def test_items_that_could_not_be_answered_are_listed(report: Report, evaluation: list[Record]) -> None:
    why = {f"key-{i}": f"reason <{i}>" for i in range(5)}
    odd = summarise(evaluation, resamples=100, unanswered={"qmop@16": why})
    shown, plain = (" ".join(" ".join(_Page(to_html(one)).words).split()) for one in (odd, report))

    assert "5 not answered" in shown
    listed = "qmop@16 5 key-0 (reason <0>); key-1 (reason <1>); key-2 (reason <2>); and 2 more They count as wrong."
    assert listed in shown
    assert "could not be answered" not in plain


def test_tables_scroll_inside_a_box_of_their_own(report: Report) -> None:
    text = to_html(report)

    assert text.count("<table") == text.count('<div class="scroll"><table') >= 4


def test_what_was_kept_is_drawn_under_the_answer(
    report: Report, evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    samples = pick_samples(evaluation, {r.item.key: r.image for r in small_suite}, count=2)
    drawn = with_drawings(samples, {(samples[0].key, "qmop@16"): small_suite[7].image})

    page = _Page(to_html(report, drawn))

    assert page.tags["img"] == 3
    assert [reply.drawing is not None for reply in drawn[0].replies] == [False, True, False, False]
    assert sum(base64.b64encode(small_suite[7].image).decode() in address for address in page.addresses) == 1


def test_what_a_model_says_is_text_and_never_markup(evaluation: list[Record], small_suite: list[RenderedItem]) -> None:
    evil = "<script>alert(1)</script>"
    records = [replace(record, prediction=evil, label=record.label + "<b>") for record in evaluation]
    samples = pick_samples(records, {r.item.key: r.image for r in small_suite})

    text = to_html(summarise(records, reference="uncompressed<b>", resamples=100), samples)

    assert evil not in text
    assert _Page(text).tags["script"] == _Page(text).tags["b"] == 0
    assert evil in " ".join(_Page(text).words)


def test_samples_take_the_dimensions_in_turn_and_disputed_items_first(
    evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    pictures = {r.item.key: r.image for r in small_suite}

    samples = pick_samples(evaluation, pictures, count=7)

    assert [sample.dimension for sample in samples] == [*DIMENSIONS, "GU", "SC"]
    for sample in samples:
        assert sample.image == pictures[sample.key]
        assert [reply.label for reply in sample.replies] == ["blind", "qmop@16", "average_pool@16", "uncompressed"]
        assert len({reply.right for reply in sample.replies}) == 2
        assert sample.replies[1].branch_weights == {"resampler": 0.5, "window_pool": 0.3, "prune": 0.2}
        assert sample.replies[0].branch_weights == {}


def test_what_is_worth_showing_is_what_would_be_picked(
    evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    pictures = {r.item.key: r.image for r in small_suite}

    for count in (0, 1, 7, 99):
        keys = worth_showing(evaluation, count)
        assert len(keys) == min(count, 40)
        assert keys == [sample.key for sample in pick_samples(evaluation, pictures, count)]
        few = {key: pictures[key] for key in keys}
        assert keys == [sample.key for sample in pick_samples(evaluation, few, count)]


def test_samples_are_shown_with_their_pictures(
    report: Report, evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    (sample,) = pick_samples(evaluation, {small_suite[4].item.key: small_suite[4].image})
    text = to_html(report, [sample])

    assert base64.b64encode(small_suite[4].image).decode() in text
    assert small_suite[4].item.question in text
    assert "resampler 0.50" in " ".join(" ".join(_Page(text).words).split())


def test_one_row_on_one_item_makes_a_page_too(evaluation: list[Record]) -> None:
    for record in (evaluation[0], evaluation[-1]):
        assert _Page(to_html(summarise([record], resamples=100))).tags["svg"] == 2


def test_items_without_a_dimension_make_a_page_without_that_plot(
    evaluation: list[Record], small_suite: list[RenderedItem]
) -> None:
    records = [replace(record, dimension="") for record in evaluation]
    samples = pick_samples(records, {r.item.key: r.image for r in small_suite}, count=3)

    page = _Page(to_html(summarise(records, resamples=100), samples))

    assert page.tags["svg"] == 2
    assert page.tags["img"] == 3
    assert "no dimension" in page.words


def test_equal_reports_make_equal_pages(report: Report) -> None:
    assert to_html(report) == to_html(report)
