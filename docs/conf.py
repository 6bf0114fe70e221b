"""The documentation's site, built without a network; errors and warnings end the build.

The command is `sphinx-build -W --keep-going -n docs docs/_build/html`.
"""

import ast
import inspect
import os
import re
import textwrap
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError

import softadapt_optax
import softadapt_optax.flax

project = "softadapt-optax"
author = "The softadapt-optax authors"
project_copyright = author
version = release = softadapt_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax is copied into the site, which then needs no network
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# The code on the pages runs anew in each build; what it writes to stderr counts as a warning.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "warn"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # `signature_as_written` gives them
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
# Names of other packages in signatures and docstrings: their own sites would have to be asked.
nitpick_ignore_regex = [
    ("py:.*", r"(flax|jax|nnx|optax)\..*"),
    ("py:.*", r"Any|Array(Like)?|Bool|Callable|Float|Int|Literal|PyTree|Sequence|UInt32|Units|K"),
]

html_theme = "sphinx_book_theme"
html_title = f"softadapt-optax {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search field
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}


SIGNATURE = re.compile(r"def \w+\( ?(?:self, )?(.*?),? ?\) -> (.*):")


def signature_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str | None, str | None]:
    """The signature as it stands in the source: ``ArrayLike``, not all that it stands for."""
    del app, name, options, returns
    if what == "class":  # of a `Weighting` the parts are given, other classes are not called
        return ("(init, update)" if obj is softadapt_optax.Weighting else ""), None
    if what not in ("function", "method"):
        return signature, None
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    header = source.splitlines()[function.lineno - 1 : function.body[0].lineno - 1]
    match = SIGNATURE.fullmatch(" ".join(" ".join(header).split()))
    assert match, header
    return f"({match[1]})", match[2].strip('"')


def resolve_within_package(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Public names may be written without the package's: ``{func}`softadapt```."""
    target = node.get("reftarget")
    if node.get("refdomain") != "py" or target.split(".")[0] not in softadapt_optax.__all__:
        return None
    domain = env.get_domain("py")
    target = f"softadapt_optax.{target}"
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    )


def own_names(owner: Any, module: str) -> dict[str, Any]:
    """What has no underscore and was written in that module."""
    return {
        name: value
        for name, value in vars(owner).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    }


def public_objects(module: ModuleType) -> dict[str, Any]:
    """Functions and classes by their names in the reference, and the methods of the classes."""
    listed = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    found = {}
    for name, value in (listed or own_names(module, module.__name__)).items():
        name = f"{module.__name__}.{name}"
        methods = own_names(value, value.__module__) if inspect.isclass(value) else {}
        found |= {name: value} | {f"{name}.{method}": methods[method] for method in methods}
    return found


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Ends the build if a public name is not in the reference or has no docstring."""
    del app
    public = public_objects(softadapt_optax) | public_objects(softadapt_optax.flax)
    listed = env.get_domain("py").objects
    missing = sorted(set(public) - set(listed))
    bare = sorted(name for name, value in public.items() if not inspect.getdoc(value))
    if missing or bare:
        raise SphinxError(
            f"Public names missing in docs/reference: {missing}; without a docstring: {bare}."
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the functions above."""
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("missing-reference", resolve_within_package)
    app.connect("env-check-consistency", check_reference)
    # It adds a file and reads no page, but does not say so: `-j 2` would read them one by one.
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
    return {"parallel_read_safe": True, "parallel_write_safe": True}
