"""What the docstrings and the README show is run; what they promise is looked up."""

import doctest
import importlib
import importlib.util
import inspect
import json
import pathlib
import pkgutil
import re

import jax
import pytest

import softadapt_optax as sa
from benchmarks import reliability

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODULES = [m.name for m in pkgutil.walk_packages(sa.__path__, "softadapt_optax.")]
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


RELIABILITY = json.loads((ROOT / "benchmarks" / "reliability.json").read_text())


def test_the_page_on_reliability_is_what_was_measured():
    assert (ROOT / "docs" / "reliability.md").read_text() == reliability.page(RELIABILITY)


def test_the_readme_says_what_was_measured_of_reliability():
    section = " ".join(README.split("## Reliability")[1].split("\n## ")[0].split())
    kills, faults, long_run, fuzz = (RELIABILITY[name] for name in reliability.PARTS)
    assert f" {sum(row['kills'] for row in kills['rows'])} times" in section
    assert all(row["bit_for_bit_equal"] for row in kills["rows"])
    assert f"in {len(faults['rows'])} combinations" in section
    assert all(row["state_is_finite"] and row["params_are_finite"] for row in faults["rows"])
    cases = fuzz["finite"] + fuzz["not finite"] + fuzz["wrong"]
    assert f"* {cases:,} random cases" in section
    assert "100,000 steps" in section
    assert all(row["steps"] == 100_000 and row["state_is_finite"] for row in long_run["rows"])
    drift = max(row["weight_sum_deviation"] for row in long_run["rows"])
    assert f"exact to {drift:.0e};" in section
    assert "10,000 calls" in section
    for row in long_run["rows"]:
        assert (row["calls"], row["traces"], row["more_arrays"]) == (10_000, 1, 0), row


def is_public_function(name):
    return inspect.isfunction(inspect.unwrap(getattr(sa, name)))


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


def test_every_public_function_has_an_example_arguments_and_returns():
    functions = [name for name in sa.__all__ if is_public_function(name)]
    assert len(functions) >= 5
    for name in functions:
        documentation = inspect.getdoc(getattr(sa, name))
        for part in ("Args:", "Returns:", "Raises:", "Examples:", ">>> "):
            assert part in documentation, (name, part)
        for argument in inspect.signature(getattr(sa, name)).parameters:
            assert re.search(rf"^  {argument}: ", documentation, re.MULTILINE), (name, argument)


def test_every_public_name_is_documented_and_listed():
    assert sa.__all__ == sorted(sa.__all__)
    for name in sa.__all__:
        assert inspect.getdoc(getattr(sa, name))
    public = {name for name, value in vars(sa).items() if not name.startswith("_")}
    assert {name for name in public if not inspect.ismodule(getattr(sa, name))} == set(sa.__all__)


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_readme_code_runs(block, capsys):
    # Users broadcast by rank; our own strictness is not theirs.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_readme_loop_is_short():
    statements = [line for line in PYTHON_BLOCKS[0].splitlines() if line.strip()]
    assert len(statements) <= 16


def test_the_readme_has_two_commands_of_one_line():
    assert len(SHELL_BLOCKS) == 2
    main_job, tests = SHELL_BLOCKS
    assert re.fullmatch(r"pip install -e \S+ && python examples/\w+\.py\n", main_job)
    assert re.fullmatch(r"pip install -e \S+ && python -m pytest\n", tests)


def anchors_of(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def test_links_into_the_repository_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local
    for link in local:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            text = (ROOT / path).read_text() if path else README
            assert anchor in anchors_of(text), link


def test_the_check_of_links_sees_what_is_broken(tmp_path):
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    check_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_links)
    there = '<h1 id="top">here</h1> <a href="#top">up</a> <a href="https://else.where/x">out</a>'
    there += '<a href="sub/page.html#there">on</a> <img src="picture.png" alt="a picture">'
    broken = '<a href="#here">no anchor</a> <a href="gone.html">gone</a> <img src="../picture.png">'
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture.png").touch()
    (tmp_path / "index.html").write_text(there)
    (tmp_path / "sub" / "page.html").write_text('<p id="there">')
    assert check_links.faults(tmp_path) == ([], 3)
    (tmp_path / "sub" / "page.html").write_text(f'<p id="there"> {broken}')
    found, followed = check_links.faults(tmp_path)
    assert followed == 6
    assert [line.split(": ", 1)[1] for line in found] == [
        "picture without text: ../picture.png",
        "no such anchor: #here",
        "nothing at gone.html",
    ]
