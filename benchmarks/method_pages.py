"""Writes what the pages of the methods have from the evidence: how each method fared.

    python -m benchmarks.method_pages

On a page it stands between two comments, `<!-- evidence: pcgrad -->`, say, with the names of one or
more rows, and `<!-- end -->`; `<!-- defaults -->` heads the advice for each kind of problem. A test
compares the pages with the JSON.
"""

import pathlib
import re

from benchmarks import evidence
from benchmarks.evidence_rows import FIXED, METHODS, PLAIN
from benchmarks.study import Reports

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
BLOCK = re.compile(r"(<!-- evidence: (.*?) -->\n).*?(\n<!-- end -->)", re.DOTALL)
DEFAULTS = re.compile(r"(<!-- defaults -->\n).*?(\n<!-- end -->)", re.DOTALL)


def problems_where(verdict: str, row: str, reference: str, reports: Reports) -> list[str]:
    """With an asterisk where the correction for the number of comparisons leaves it."""
    found = {}
    for name, report in reports.items():
        against = report["rows"].get(row, {}).get(f"against {reference}")
        if against is not None and against["verdict"] == verdict:
            found[name] = "*" * against["certain"]
    return [name + mark for name, mark in found.items()]


def counted(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def fared(row: str, reports: Reports) -> str:
    """How a row fared against the plain sum and the weights that were searched for."""
    measured = sum(row in report["rows"] for report in reports.values())
    better, worse = (problems_where(v, row, PLAIN, reports) for v in ("better", "worse"))
    text = f"ahead of the plain sum on {counted(better)}, behind on {counted(worse)}"
    if row != FIXED:
        beats = problems_where("better", row, FIXED, reports)
        text += f", ahead of searched weights on {counted(beats)}"
    problems = "1 problem" if measured == 1 else f"{measured} problems"
    return f"{text}; {problems}" if measured else "not measured yet"


def written(rows: list[str], reports: Reports) -> str:
    """A bullet of a page in docs/methods/."""
    each = [f"`{row}` is {fared(row, reports)}" for row in rows]
    parts = each if len(rows) > 1 else [fared(rows[0], reports)]
    return evidence.wrapped(f"**Measured** in [the evidence](../evidence.md): {'; '.join(parts)}.")


def filled(text: str, reports: Reports) -> str:
    def block(match: re.Match) -> str:
        rows = match[2].split("; ")
        if unknown := set(rows) - METHODS.keys():
            raise ValueError(f"Rows should be those of the evidence, got {sorted(unknown)}.")
        return match[1] + written(rows, reports) + match[3]

    text = DEFAULTS.sub(lambda match: match[1] + evidence.advice(reports) + match[2], text)
    return BLOCK.sub(block, text)


if __name__ == "__main__":
    found = evidence.reports_to_tell()
    for page in PAGES:
        page.write_text(filled(page.read_text(), found))
