"""Equations as MathML, written when the pages are built: they need no JavaScript and no network to be seen."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Offer the renderer as ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(f"{translator.starttag(node, 'span', '', CLASS='math')}{mathml(node, 'inline')}</span>")
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f"{translator.starttag(node, 'div', CLASS='math')}{mathml(node, 'block')}</div>\n")
    raise nodes.SkipNode


def mathml(node: nodes.math | nodes.math_block, display: str) -> str:
    """
    Convert an equation. latex2mathml writes a command that it does not know into its output as it is, backslash and all, and
    raises its errors without saying where: both become a warning that names the page.
    """
    latex = node.astext().strip()
    try:
        converted = convert(latex, display=display)
    except Exception as error:
        logger.warning("no MathML for %r: %s", latex, repr(error), location=node)
        return ""
    if "\\" in converted:
        logger.warning("latex2mathml does not know a command of %r", latex, location=node)
    return converted
