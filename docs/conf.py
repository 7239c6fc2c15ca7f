"""Configuration of the documentation's build."""

import sys
from pathlib import Path

from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "sb3-trpo-plus"
author = "The sb3-trpo-plus developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
# Dashes and ellipses, but no quotes: those of code in tables, fisher="empirical", are not a sentence's.
smartquotes_action = "De"

html_theme = "furo"
html_title = "sb3-trpo-plus"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_copy_source = False
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
suppress_warnings = ["ref.python"]


def setup(app: Sphinx) -> None:
    """Signatures say ArrayLike, and not all that it stands for."""
    written_out = stringify_annotation(ArrayLike, "smart")

    def shorten(*event: object) -> tuple[str, object] | None:
        *_, arguments, returned = event
        return (arguments.replace(written_out, "ArrayLike"), returned) if isinstance(arguments, str) else None

    app.connect("autodoc-process-signature", shorten)
