"""Every shape in a signature is checked while the tests run, and nothing broadcasts by rank."""

import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Several worker processes share one GPU; on a CPU it means nothing.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

with jaxtyping.install_import_hook("softadapt_optax", "beartype.beartype"):
    import softadapt_optax  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Quick tests compile more than they compute; the others see programs as users have them.

    But for more methods, of whose kind there is one among the others.
    """
    marks = config.getoption("markexpr")
    is_quick = marks == "more_methods" or marks.startswith("not slow")
    if not is_quick or "XLA_FLAGS" in os.environ:
        return
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # unknown to newer ones


# Files with tests that take a minute and more.
LONG = ("test_many_devices.py", "test_targets.py", "test_benchmarks.py", "test_examples.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first: at the end one worker would wait for the other's last one."""
    items.sort(key=lambda item: item.path.name not in LONG)


def holds_many_memory_maps() -> bool:
    """Each compiled program holds some, of which a process has 65,530 on Linux."""
    maps = pathlib.Path("/proc/self/maps")
    return not maps.exists() or maps.read_bytes().count(b"\n") > 30_000


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go() -> Iterator[None]:
    """Until then the small ones, of operations that run eagerly, serve the next module too."""
    yield
    if holds_many_memory_maps():
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def products_are_exact() -> None:
    """On an accelerator matrix products of float32 are rounded to TF32 or bfloat16 else."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
