"""The pages of the methods say how each fared, from the JSON of the evidence."""

import pytest

from benchmarks import evidence, method_pages
from benchmarks.evidence_rows import FIXED, LEFT_OUT, METHODS, PLAIN

pytestmark = pytest.mark.once


def test_the_pages_have_the_figures():
    found = evidence.reports_to_tell()
    for page in method_pages.PAGES:
        assert method_pages.filled(page.read_text(), found) == page.read_text(), page.name


def test_every_method_is_told_of():
    text = "".join(page.read_text() for page in method_pages.PAGES)
    rows = [row for match in method_pages.BLOCK.finditer(text) for row in match[2].split("; ")]
    assert len(rows) == len(set(rows))
    factories = {METHODS[row].factory for row in rows}
    assert factories == {method.factory for method in METHODS.values()} - set(LEFT_OUT)


def report(**values):
    rows = {PLAIN: [3.0, 3.1, 3.2], FIXED: [2.0, 2.1, 2.2]} | values
    return {"suite": "physics", "rows": {name: {"values": row} for name, row in rows.items()}}


def test_what_is_said_follows_from_the_verdicts():
    reports = evidence.corrected(
        {
            "one": report(mgda=[1.0, 1.1, 1.2], pcgrad=[3.0, 3.2, 3.1]),
            "two": report(mgda=[5.0, 9.0, 4.0], pcgrad=[2.5, 2.6, 2.7]),
            "three": report(pcgrad=[3.1, 3.0, 3.2]),
        }
    )
    assert method_pages.fared("mgda", reports) == (
        "ahead of the plain sum on 1 (one*), behind on 1 (two), ahead of searched weights on 1 "
        "(one*); 2 problems"
    )
    assert method_pages.fared(FIXED, reports) == (
        "ahead of the plain sum on 3 (one*, two*, three*), behind on none; 3 problems"
    )
    assert method_pages.fared("dwa", reports) == "not measured yet"
    page = "a\n<!-- evidence: mgda; pcgrad -->\nx\n<!-- end -->\nb"
    text = " ".join(method_pages.filled(page, reports).split())
    assert "`mgda` is ahead of the plain sum on 1 (one*)" in text
    assert "`pcgrad` is ahead of the plain sum on 1 (two*)" in text
    assert text.endswith("<!-- end --> b")


def test_a_row_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="Rows should be those of the evidence, got"):
        method_pages.filled("<!-- evidence: mgdaa -->\nx\n<!-- end -->", {})
