"""Every shape in a signature is checked while the tests run, and nothing broadcasts by rank."""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("softadapt_optax", "beartype.beartype"):
    import softadapt_optax  # noqa: F401


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go() -> Iterator[None]:
    """Each compiled program holds memory maps, of which a process has 65,530 on Linux."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
