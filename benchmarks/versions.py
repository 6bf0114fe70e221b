"""The version of the code behind a figure: a hash of all modules that it rests on.

Imports are followed through the repository. Of the library's names those modules count in which
what is used is defined, so that a change in one method leaves the figures of the others alone.
Neither docstrings, comments and layout count, nor what errors say.
"""

import ast
import functools
import hashlib
import pathlib
from collections.abc import Collection, Iterable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = "softadapt_optax"


def file_of(module: str) -> pathlib.Path | None:
    """Where a module of the repository is, None for those of other packages."""
    path = ROOT.joinpath(*module.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def tree_of(module: str) -> ast.Module:
    file = file_of(module)
    if file is None:
        raise ValueError(f"module should be one of the repository, got {module!r}.")
    return ast.parse(file.read_text())


@functools.cache
def defined_in() -> dict[str, str]:
    """The module of each name that the library exports."""
    return {
        name.asname or name.name: node.module
        for node in tree_of(LIBRARY).body
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }


def imported_by(module: str) -> Iterator[str]:
    """Modules of the repository, of the library those that define what is used."""
    tree, library = tree_of(module), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name == LIBRARY:
                    library.add(name.asname or name.name)
                else:
                    yield name.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == LIBRARY:
                for name in node.names:
                    yield defined_in().get(name.name, f"{LIBRARY}.{name.name}")
                continue
            yield node.module
            for name in node.names:
                yield f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        is_used = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_used and node.value.id in library:
            yield defined_in().get(node.attr, f"{LIBRARY}.{node.attr}")


def closure(modules: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """These modules and all in the repository that they import, sorted, but some."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        # A package's own file lists what it has, and does nothing.
        is_code = (file := file_of(module)) is not None and file.name != "__init__.py"
        if is_code and module not in found and module not in without:
            found.add(module)
            waiting += imported_by(module)
    return sorted(found)


@functools.cache
def meaning_of(module: str) -> str:
    """Its code, without comments, docstrings and what is raised."""
    tree = tree_of(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
        elif isinstance(node, ast.Raise):
            node.exc = node.cause = None
    return ast.unparse(tree)


def version_of(
    modules: Iterable[str], settings: object = None, without: Collection[str] = ()
) -> str:
    """Twelve hexadecimal digits, of what the modules rest on and of settings by their `repr`."""
    parts = [f"{module} {meaning_of(module)}" for module in closure(modules, without)]
    return hashlib.sha256("\n".join([*parts, repr(settings)]).encode()).hexdigest()[:12]
