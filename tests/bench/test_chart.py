"""The chart of `make bench`, from figures that are made up."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from benchmarks.chart import Bar, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"
PANELS = [
    Panel("requests/s", (Bar("ours", 400, "400", "ours"), Bar("a & b <c>", 100, "100"), Bar("none", 0, "0"))),
    Panel("p50 ms", (Bar("ours", 0.5, "0.50", "ours"), Bar("other", 2, "2.00", "reference"))),
]


def lengths() -> list[float]:
    """Of the bars, from the top; the first rectangle is the background."""
    _, *bars = ElementTree.fromstring(draw(PANELS)).iter(f"{SVG}rect")
    return [float(bar.attrib["width"]) for bar in bars]


def test_each_title_name_and_figure_is_in_it() -> None:
    texts = [text.text for text in ElementTree.fromstring(draw(PANELS)).iter(f"{SVG}text")]
    for panel in PANELS:
        assert panel.title in texts
        assert {text for bar in panel.bars for text in (bar.name, bar.text)} <= set(texts)


def test_bars_are_proportional_within_a_panel_and_the_longest_of_each_has_one_length() -> None:
    first, quarter, none, fifth, last = lengths()
    assert (first, none) == (last, 0)
    assert (quarter, fifth) == pytest.approx((first / 4, last / 4))


def test_nothing_overlaps_or_lies_outside() -> None:
    root = ElementTree.fromstring(draw(PANELS))
    back, *bars = root.iter(f"{SVG}rect")
    edges = [(float(bar.attrib["y"]), float(bar.attrib["y"]) + float(bar.attrib["height"])) for bar in bars]
    assert all(bottom < top for (_, bottom), (top, _) in pairwise(edges))
    assert edges[-1][1] < float(back.attrib["height"])


def test_each_class_has_a_colour_in_light_and_in_dark() -> None:
    light, _, dark = draw(PANELS).partition("prefers-color-scheme: dark")
    for name in ("back", "text", "bar", "ours", "reference"):
        assert f".{name} {{ fill: #" in light
        assert f".{name} {{ fill: #" in dark.partition("</style>")[0]
