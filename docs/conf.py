"""The site: ``make docs`` builds it with Sphinx into ``site/``, and warnings are errors.

Pages are Markdown that code hosts show as well; the API comes from the docstrings.  Nothing is
loaded from elsewhere, neither while building nor while reading: formulae become MathML, which
browsers draw themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "graphs")]

import lightkv_gnn  # noqa: E402  (from this checkout)

project = "lightkv-gnn"
author = "The lightkv-gnn authors"
project_copyright = author
release = lightkv_gnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["**/*.template.md"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!lightkv).*"),  # what other packages document
    ("py:class", r"lightkv.*\._[^.]*"),  # type variables
]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

default_role = "code"
smartquotes = False  # they would make one dash of the two before an option
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "lightkv-gnn"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def inline(translator: Any, node: nodes.math) -> None:
    """Writes a formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """Writes a formula of its own."""
    translator.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def open_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Lets links to pages beside a document, such as the explorer's, open instead of download."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(download_reference)):
        target = here / link["reftarget"]
        if target.suffix != ".html":
            continue
        copy = Path(app.outdir) / target.resolve().relative_to(app.srcdir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(target.read_bytes())
        link.replace_self(nodes.reference("", "", *link.children, refuri=link["reftarget"]))


def set_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Sets the dashes that autodoc writes as two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def keep_colons(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keeps napoleon from taking what precedes a colon for the type of an attribute."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # an empty comment, which has none


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the above."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("doctree-read", open_pages)
    app.connect("doctree-read", set_dashes)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
