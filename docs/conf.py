"""Settings of the site, which ``make docs`` builds with Sphinx.

A page is a Markdown file in one of the four folders, and a line of ``index.md``. A module's page is three lines in
``reference/api/``, and a row of the table there. Every warning is an error: a page that nothing lists, a link to
nowhere and a name that no page explains end the build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "DistNet"
author = "The DistNet developers"
copyright = "The DistNet developers. Apache-2.0"  # noqa: A001 - Sphinx asks for this name
release = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Reports of runs, not pages of this site; pages link to them.
exclude_patterns = ["results/*/*.md", "_build"]
highlight_language = "none"  # of blocks that name no language
default_role = "literal"  # docstrings write `name` for an argument

# ---- pages in Markdown ---------------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# ---- the API reference from the docstrings -------------------------------------------------------------------------
# The pages are made from the source: neither the C++ core nor a framework is needed, so they are the same everywhere.
autodoc_mock_imports = ["distnet._native", "jax", "keras", "tensorflow", "torch"]
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Arrays": "Arrays", "ArraysLike": "ArraysLike"}  # else each is spelled out, with its parts
add_module_names = False  # Client, not distnet.client.Client
nitpicky = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a field that a docstring describes is listed once
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# Classes whose objects other calls return: how those make them is nobody's business.
MADE_BY_CALLS = {"distnet.client.Client", "distnet.client.Handle", "distnet.process_group.Work"}

# ---- how it looks --------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"DistNet {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Find what a docstring names by its short name, such as ``distnet.Client``, on the page of its module.

    Names in signatures that no page has, such as NumPy's or private ones, stay text. One that a docstring calls
    ``distnet.…`` has to be found.
    """
    target: str = node["reftarget"]
    if node.get("refdomain") != "py":
        return None
    python = env.domains["py"]
    tail = "." + target.removeprefix("distnet.")
    found = [name for name in python.data["objects"] if name.endswith(tail)]
    if found:
        entry = python.data["objects"][min(found, key=len)]
        return make_refnode(app.builder, node.get("refdoc", env.docname), entry.docname, entry.node_id, content)
    must_be_found = target.startswith("distnet.") and "._" not in target and "refwarn" in node
    return None if must_be_found else content


def readable_signature(
    app: Sphinx, what: str, name: str, of: object, options: object, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Leave out what a reader cannot use, and Sphinx's name for an alias within a union."""
    if name in MADE_BY_CALLS:
        return "", None
    arguments, returns = (
        text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (arguments, returns)
    )
    return arguments, returns


def setup(app: Sphinx) -> None:
    # A property's docstring is prose: Napoleon would take what stands before its first colon for a type.
    GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("missing-reference", resolve_short_name)
