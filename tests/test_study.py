"""Studies: rows are kept, gone on with and measured again when what they rest on has changed."""

import contextlib
import json
import types

import pytest
import rich.console

from benchmarks import study, versions
from examples.paper import common

pytestmark = pytest.mark.once

CONSOLE = rich.console.Console(quiet=True)


class Fake:
    """A study of two problems and three rows, whose versions and time are what a test wants."""

    def __init__(self, folder):
        self.file, self.measured = folder / "figures.json", []
        self.version, self.loads = {"first": "1", "second": "1", "third": "1"}, 0
        problems = {name: types.SimpleNamespace(name=name) for name in ("one", "two")}
        self.study = study.Study(
            name="fake",
            description="",
            problems=lambda quick: problems,
            rows=("first", "second", "third"),
            rows_of=lambda problem, quick: ["first", "second", "third"],
            needed=lambda row: ("first",) if row == "third" else (),
            base=("first",),
            version_of=lambda problem, row: self.version[row],
            load=self.load,
            measure=self.measure,
            about=lambda problem, rows: {"setting": problem.name},
            table_of=lambda name, report: common.Table(name, ("row",), [("first",)]),
            verdict_of=lambda report: "",
            draw=lambda reports: {},
            page=lambda reports, picture: "",
        )

    @contextlib.contextmanager
    def load(self, problem, progress):
        self.loads += 1
        yield f"data of {problem.name}"

    def measure(self, problem, loaded, row, rows, advance):
        assert loaded == f"data of {problem.name}"
        if row == "third":
            assert "first" in rows
        self.measured.append((problem.name, row))
        if self.measured[-1] in getattr(self, "failing", ()):
            raise KeyboardInterrupt
        return {"values": [float(len(self.measured))]}

    def run(self, *problems, rows=None, **options):
        self.measured.clear()
        chosen = problems or ("one", "two")
        reports = study.measure(self.study, chosen, rows, False, self.file, CONSOLE, **options)
        return reports, [f"{problem} {row}" for problem, row in self.measured]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def test_what_is_there_is_not_measured_again(fake):
    reports, measured = fake.run()
    assert measured == [f"{p} {r}" for p in ("one", "two") for r in ("first", "second", "third")]
    assert list(reports["one"]["rows"]) == ["first", "second", "third"]
    assert reports["one"]["rows"]["second"]["version"] == "1"
    again, measured = fake.run()
    assert (again, measured, fake.loads) == (reports, [], 2)


def test_a_run_that_was_stopped_is_taken_up(fake):
    fake.failing = [("one", "third")]
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    fake.failing = []
    reports, measured = fake.run("one")
    assert measured == ["one third"]
    assert len(reports["one"]["rows"]) == 3


def test_rows_whose_code_has_changed_are_measured_again_and_those_that_need_them(fake):
    fake.run()
    fake.version["second"] = "2"
    assert fake.run("one")[1] == ["one second"]
    fake.version["first"] = "2"
    assert fake.run("one")[1] == ["one first", "one third"]
    assert fake.run()[1] == ["two first", "two second", "two third"]


def test_rows_can_be_accepted_where_code_has_changed_that_does_not_alter_them(fake):
    before, _ = fake.run()
    fake.version = dict.fromkeys(fake.version, "2")
    study.accept(fake.study, ["one"], False, fake.file)
    reports, measured = fake.run()
    assert measured == ["two first", "two second", "two third"]
    values = {row: found["values"] for row, found in reports["one"]["rows"].items()}
    assert values == {row: found["values"] for row, found in before["one"]["rows"].items()}


def test_problems_and_rows_that_are_named_alone_are_measured(fake):
    assert fake.run("two", rows=["first"])[1] == ["two first"]
    assert fake.run("two", rows=["first"])[1] == []
    assert fake.run("two", rows=["first"], anew=True)[1] == ["two first"]
    assert fake.run("two", anew=True)[1] == ["two first", "two second", "two third"]


def test_no_row_is_begun_when_the_minutes_are_over(fake):
    reports, measured = fake.run(minutes=-1.0)
    assert (reports, measured) == ({}, [])


def test_rows_that_another_process_saves_meanwhile_stay(fake, monkeypatch):
    """Two processes, each with its own problem, write into the same file."""
    other = Fake(fake.file.parent)
    measure = fake.measure

    def while_another_runs(problem, loaded, row, rows, advance):
        if row == "second":
            other.run("two")
        return measure(problem, loaded, row, rows, advance)

    fake.study = fake.study._replace(measure=while_another_runs)
    reports, _ = fake.run("one")
    assert {name: len(report["rows"]) for name, report in reports.items()} == {"one": 3, "two": 3}
    assert list(json.loads(fake.file.read_text())) == ["one", "two"]


def test_what_is_missing_is_told(fake):
    reports, _ = fake.run("one", rows=["first", "second"])
    assert list(study.told(fake.study, reports)) == ["one"]
    assert study.not_measured(fake.study, reports) == "**Not measured yet:** one (third); two."
    reports, _ = fake.run("two", rows=["second"])
    assert list(study.told(fake.study, reports)) == ["one"]  # the first is the base of the others
    assert study.not_measured(fake.study, fake.run()[0]) == ""


def test_the_days_of_a_report_are_those_of_its_rows():
    rows = {"first": {"date": "2026-01-02"}, "second": {"date": "2026-01-01"}}
    assert study.dates_of({"rows": rows}) == "2026-01-01 to 2026-01-02"
    assert study.dates_of({"rows": {"first": rows["first"]}}) == "2026-01-02"


# Versions.


def test_the_closure_of_a_method_has_its_solver_and_no_other_method():
    found = versions.closure(["softadapt_optax._gradients.nash_mtl"])
    assert "softadapt_optax._solvers.fairness" in found or any("_solvers" in f for f in found)
    assert "softadapt_optax._gradients.mgda" not in found
    assert "softadapt_optax._balance" in found


def test_of_the_library_what_is_used_counts():
    found = versions.closure(["benchmarks.problems"])
    assert "softadapt_optax._component_grads" in found
    assert not any(module.startswith("softadapt_optax._gradients") for module in found)
    left_out = versions.closure(["benchmarks.problems"], ["softadapt_optax._component_grads"])
    assert set(found) - set(left_out) >= {"softadapt_optax._component_grads"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    package = tmp_path / versions.LIBRARY
    package.mkdir()
    (package / "__init__.py").write_text("")

    def version(text, settings=None):
        (tmp_path / "one.py").write_text(text)
        versions.meaning_of.cache_clear()
        versions.defined_in.cache_clear()
        return versions.version_of(["one"], settings)

    yield version
    versions.meaning_of.cache_clear()
    versions.defined_in.cache_clear()


CODE = '''"""A docstring."""
import math
def area(radius):
    """Of a disk."""
    if radius < 0:
        raise ValueError(f"radius should be positive, got {radius}.")
    return math.pi * radius**2  # of it
'''


def test_neither_words_nor_layout_change_a_version(module):
    before = module(CODE)
    for old, new in (
        ("A docstring", "Another"),
        ("Of a disk.", "Its area."),
        ("should be positive", "is negative"),
        ("  # of it", ""),
        ("import math\n", "import math\n\n\n"),
    ):
        assert module(CODE.replace(old, new)) == before
    for old, new in (("radius**2", "radius**3"), ("radius < 0", "radius <= 0")):
        assert module(CODE.replace(old, new)) != before
    assert module(CODE, {"rate": 0.1}) not in (before, module(CODE, {"rate": 0.2}))


def test_a_module_that_is_imported_counts(module, tmp_path):
    code = "from other import area\n"
    (tmp_path / "other.py").write_text(CODE)
    before = module(code)
    (tmp_path / "other.py").write_text(CODE.replace("radius**2", "radius**3"))
    assert module(code) != before
