"""The documentation site: `uv run --extra docs sphinx-build -W --keep-going -b html docs build/docs`."""

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = "cujax"
author = "The cujax authors"
release = version = importlib.metadata.version("cujax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = f"cujax {version}"
default_role = "code"
smartquotes = False  # values in quotes are to be copied

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Reference", "notes_style")]

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
myst_linkify_fuzzy_links = False

# A notebook that fails, or takes this many seconds, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

DOCS = Path(__file__).parent
# The kernel of a notebook keeps its compilations where the tests do, and takes one thread for what NumPy computes.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(DOCS.parent / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def _folders_as_text(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a folder, or to a file outside of the pages, which GitHub shows and a site does not, becomes its text."""
    del app
    for link in list(doctree.findall(pending_xref)):
        target = str(link.get("reftarget", ""))
        page = DOCS / link.get("refdoc", "")
        paths = page.parent / target, DOCS.parent / target
        if link.get("reftype") == "myst" and not target.endswith(".md") and any(path.exists() for path in paths):
            link.replace_self(link.children)


_ROW = re.compile(r"^\|(.*)\|$")


def _tables_of_docstrings(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Markdown tables of docstrings become the tables of Sphinx."""
    del app, what, name, thing, options
    made: list[str] = []
    for line in lines:
        row = _ROW.match(line.strip())
        if row is None:
            made.append(line)
            continue
        if re.fullmatch(r"[-:|]+", row.group(1)):
            continue
        if not made or not made[-1].startswith("     "):
            made += [".. list-table::", "   :header-rows: 1", ""]
        first, *others = (cell.strip() for cell in row.group(1).split("|"))
        made += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    lines[:] = made


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _folders_as_text)
    app.connect("autodoc-process-docstring", _tables_of_docstrings, priority=400)
