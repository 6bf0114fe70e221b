"""The package as it is installed."""

import importlib.metadata
import importlib.resources
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import softadapt_optax as sa

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = ("flax", "matplotlib", "mlxtend", "rich", "sklearn", "scipy.signal", "chex", "beartype")


def test_import_needs_no_extra_and_is_light():
    """Blocked modules raise ImportError; what is loaded lazily elsewhere stays unloaded."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        "import softadapt_optax as sa, jax.numpy as jnp\n"
        "tx = sa.softadapt(2)\n"
        "tx.update(jnp.zeros(2), tx.init(None), losses=[1.0, 2.0])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_typed_and_versioned_in_one_place():
    assert importlib.resources.files(sa).joinpath("py.typed").is_file()
    assert importlib.metadata.version("softadapt-optax") == sa.__version__


def test_the_changelog_and_the_citation_are_of_this_version():
    version, date = re.search(
        r"^## \[(.+)\] - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    ).groups()
    assert version == sa.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation


def test_dependencies_are_few():
    requires = importlib.metadata.requires("softadapt-optax")
    core = {re.match(r"[\w-]+", line).group() for line in requires if "extra ==" not in line}
    assert core == {"jax", "optax", "numpy", "jaxtyping"}


FUNCTIONS = [name for name in sa.__all__ if inspect.isfunction(getattr(sa, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_has_types_by_their_names(name):
    """Not the unions that they stand for, which fill half a screen."""
    signature = str(inspect.signature(getattr(sa, name)))
    for word in ("Union", "jaxlib", "collections.abc", "_src", "ForwardRef"):
        assert word not in signature
