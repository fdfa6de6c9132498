"""Bars as SVG, in the reader's light or dark colours: a panel for each workload, a bar for each server."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABELS, LONGEST = 860, 250, 500  # of the picture, of the names at its left, of the longest bar of a panel
ROW, BAR, HEAD, MARGIN = 24, 16, 48, 20
STYLE = """
    .back { fill: #ffffff } .text { fill: #1f2328 }
    .bar { fill: #8c959f } .ours { fill: #0969da } .reference { fill: #d0d7de }
    .text { font: 14px system-ui, sans-serif } .title { font-weight: 600 }
    @media (prefers-color-scheme: dark) {
      .back { fill: #0d1117 } .text { fill: #e6edf3 }
      .bar { fill: #768390 } .ours { fill: #58a6ff } .reference { fill: #373e47 }
    }
"""


@dataclass(frozen=True)
class Bar:
    """One server's figure; `text` is the figure as it is shown, `kind` one of bar, ours and reference."""

    name: str
    value: float
    text: str
    kind: str = "bar"


@dataclass(frozen=True)
class Panel:
    """One workload."""

    title: str
    bars: tuple[Bar, ...]


def draw(panels: list[Panel]) -> str:
    """The picture. Lengths can be compared within a panel; each panel has its own unit."""
    parts: list[str] = []
    top = MARGIN
    for panel in panels:
        parts.append(_text("text title", MARGIN, top + 18, panel.title))
        most = max(bar.value for bar in panel.bars) or 1
        for number, bar in enumerate(panel.bars):
            y = top + HEAD - 16 + number * ROW
            length = LONGEST * bar.value / most
            parts += [
                _text("text", MARGIN, y + 13, bar.name),
                f'<rect class="{bar.kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
                _text("text", LABELS + length + 8, y + 13, bar.text),
            ]
        top += HEAD + len(panel.bars) * ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img"'
        ' aria-label="Measured figures as bars">'
    )
    back = f'<rect class="back" width="{WIDTH}" height="{top}" rx="8"/>'
    return "\n  ".join([head, f"<style>{STYLE}  </style>", back, *parts]) + "\n</svg>\n"


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{escape(text)}</text>'
