"""The HTML report: one page, whole, without the network, showing what was measured and nothing that was not."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from edgevqa.evaluation.comparing import Compared, Comparison
from edgevqa.evaluation.report.cells import p_value, ratio, row_names, signed, summary
from edgevqa.evaluation.report.changed import MOST_CARDS, data_uri, make_cards
from edgevqa.evaluation.report.figures import Point, frontier, short
from edgevqa.evaluation.report.page import check_report, render, write_report
from edgevqa.evaluation.rows import FailedRow
from edgevqa.runtime.errors import ConfigError

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags that are opened and closed, addresses, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(comparison: Comparison) -> str:
    return render(comparison)


def changed(comparison: Comparison, texts: list[str]) -> Comparison:
    """The comparison, with other answers of its second row."""
    exact, noisy = comparison.compared
    return dataclasses.replace(comparison, compared=[exact, dataclasses.replace(noisy, texts=texts)])


def test_the_page_is_whole_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.open == []
    outside = [each for each in page.addresses if not each.startswith(("#", "data:image/"))]
    assert outside == []
    assert "@import" not in html
    assert not re.search(r"url\((?!['\"]?#)", html), "the style asks for another file"
    assert page.counts.get("script", 0) == 0


def test_the_page_shows_rows_figures_and_layers(html: str, comparison: Comparison) -> None:
    page = Page(html)
    for row in comparison.rows:
        assert row.variant in page.text
        assert f"{row.accuracy:.2f}" in page.text
    assert page.counts["svg"] == 3  # accuracy against latency, graphs, layers
    assert "vision_trunk/vision.fc1" in page.text
    assert "<worst>" in page.text, "a reason must be escaped, not lost"
    assert "McNemar" in page.text
    assert str(comparison.rows[0].ci_method) in page.text
    assert "language decoder" in page.text


def test_the_page_shows_the_changed_answers_with_their_pictures(html: str, comparison: Comparison) -> None:
    page, noisy = Page(html), comparison.rows[1]
    pictures = [each for each in page.addresses if each.startswith("data:image/")]
    assert len(pictures) == page.counts["img"] == noisy.changed
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))) as picture:
        assert picture.size == comparison.samples[0].image.size
    assert f"{noisy.changed} of 64 questions" in page.text


def test_at_most_sixty_cards_and_how_many_there_are(comparison: Comparison) -> None:
    many = changed(comparison, ["<script>alert(1)</script>"] * 64)
    cards = make_cards(many, ["fp32", "int8"])
    assert (len(cards.shown), cards.total) == (MOST_CARDS, 64)
    verdicts = [["lost", "gained", "other"].index(card.changes[0].verdict or "") for card in cards.shown]
    assert verdicts == sorted(verdicts)
    html = render(many)
    assert "64 of 64 questions" in html
    assert "Shown are 60" in html
    assert Page(html).counts.get("script", 0) == 0


def test_no_changed_answer_is_said(comparison: Comparison) -> None:
    same = changed(comparison, comparison.compared[0].texts)
    page = Page(render(same))
    assert "every variant gives the float model’s answer to every question" in page.text
    assert page.counts.get("img", 0) == 0


def test_a_page_without_answers_times_or_float(comparison: Comparison) -> None:
    """Nothing is drawn that was not measured."""

    def bare(each: Compared) -> Compared:
        nothing = dict.fromkeys(
            ("accuracy", "ci95", "ci_method", "exact_match", "anls", "agreement", "agreement_ci95", "changed")
        )
        row = msgspec.structs.replace(
            each.row,
            **nothing,
            accuracy_drop=None,
            mcnemar=None,
            by_type={},
            latency_ms={},
            per_graph_ms={},
            latency_runs=0,
        )
        return dataclasses.replace(each, row=row, reference=None, layers=[])

    page = Page(render(dataclasses.replace(comparison, compared=[bare(each) for each in comparison.compared])))
    assert page.open == []
    assert page.counts.get("svg", 0) == 0
    assert "Is the difference real?" not in page.text
    assert "Not measured." in page.text


def test_failed_rows_and_conditions_are_shown(comparison: Comparison) -> None:
    told = "it ran out of <memory>"
    failed = FailedRow(bundle="b", precision="int8", variant="int8-s8", backend="x", error=told, exit_code=70)
    page = Page(
        render(dataclasses.replace(comparison, failed=[failed], warnings=["seen before"], gate_errors=["no J"]))
    )
    for text in (
        "it ran out of <memory>",
        "seen before",
        "no J",
        "int8.accuracy < fp32.accuracy - 100",
        "passed",
        "fails",
    ):
        assert text in page.text


def test_the_report_is_written_whole(comparison: Comparison, tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    write_report(comparison, target)
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(ConfigError, match="is a folder"):
        check_report(tmp_path)


def test_the_best_of_a_column_needs_more_than_noise(comparison: Comparison) -> None:
    columns, cells = summary(comparison.rows)
    assert "energy J" not in columns or comparison.rows[0].energy_j is not None
    size = columns.index("size MB")
    assert [row[size].best for row in cells] == [False, False]
    smaller = msgspec.structs.replace(comparison.rows[1], size_mb=comparison.rows[0].size_mb / 2)
    _, cells = summary([comparison.rows[0], smaller])
    assert [row[size].best for row in cells] == [False, True]
    assert cells[1][size].detail == "2.00× smaller"


def test_names_tell_rows_apart(comparison: Comparison) -> None:
    row = comparison.rows[0]
    assert [name.full for name in row_names([row])] == ["fp32"]
    other = msgspec.structs.replace(row, backend="openvino")
    assert [name.full for name in row_names([row, other])] == ["fp32 · onnxruntime", "fp32 · openvino"]
    moved = msgspec.structs.replace(row, bundle="elsewhere/two.bundle")
    assert len({name.full for name in row_names([row, moved])}) == 2


def test_the_line_joins_what_nobody_beats() -> None:
    points = [
        Point(name=name, group="x", latency_ms=ms, accuracy=accuracy, interval=None)
        for name, ms, accuracy in (
            ("slow", 9, 98),
            ("fast", 3, 95),
            ("beaten", 5, 94),
            ("middle", 5, 97),
            ("same", 9, 98),
        )
    ]
    assert [point.name for point in frontier(points)] == ["fast", "middle", "slow"]


def test_pictures_are_small_enough() -> None:
    uri, small = data_uri(Image.new("RGB", (4000, 1000), "red"))
    assert uri.startswith("data:image/jpeg;base64,")
    assert not small
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (320, 80)
    assert data_uri(Image.new("L", (64, 64)))[1]


def test_how_figures_are_written() -> None:
    assert [p_value(value) for value in (0.0001, 0.0312, 1.0)] == ["p < 0.001", "p = 0.031", "p = 1"]
    assert [signed(value) for value in (0.5, -0.25, -0.001)] == ["+0.50", "−0.25", "0.00"]
    assert ratio(50, 100, words=("faster", "slower")) == "2.00× faster"
    assert ratio(100, 50, words=("faster", "slower")) == "2.00× slower"
    assert ratio(100, 100, words=("faster", "slower")) == "the same"
    assert ratio(None, 100, words=("faster", "slower")) == ""
    assert short("a" * 100) == "a" * 21 + "…" + "a" * 22
