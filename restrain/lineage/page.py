"""The page of the lineage: text, tables and figures in one HTML file that needs no script and no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from restrain.lineage.charts import short
from restrain.lineage.claim import Report

TONES = {"agrees": "yes", "agrees in part": "part", "not shown": "no", "not run": "none"}
TONES |= {f"{word} (trial)": tone for word, tone in TONES.items()}


def render(reports: Sequence[Report]) -> str:
    """The HTML. Figures are SVG of our own; everything else is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = short
    style = (resources.files("restrain.insight.report") / "page.css").read_text("utf-8")
    here = resources.files("restrain.lineage")
    template = environment.from_string((here / "page.html").read_text("utf-8"))
    return template.render(
        reports=reports,
        counts={word: sum(report.word == word for report in reports) for word in TONES},
        tones=TONES,
        style=style + (here / "page.css").read_text("utf-8"),
        told=told,
        source=source,
    )


def told(report: Report) -> str:
    """The verdict in a sentence."""
    held = report.verdict.held
    if report.outcome is None:
        return f"Not run. {report.verdict.why}"
    share = f"{sum(held)} of the {len(held)} expectations hold"
    said = {
        "agrees": "It agrees with what was expected.",
        "agrees in part": f"It agrees in part: {share}. What does not hold here is left to the long form.",
        "not shown": f"This small form does not show the claim: {share}. The long form would have to.",
    }[report.verdict.word]
    return said if report.budget == 1.0 else f"A trial at {report.budget:g} of the length, which proves nothing. {said}"


def source(text: str) -> list[tuple[str, str]]:
    """A source in pieces: (text, the address it links to or ""); arXiv numbers become links."""
    pieces = re.split(r"(arXiv:\d{4}\.\d{4,5})", text)
    return [(piece, f"https://arxiv.org/abs/{piece[6:]}" if piece.startswith("arXiv:") else "") for piece in pieces]
