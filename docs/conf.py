"""How the site is built: ``make docs``."""

import importlib.metadata
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

project = "egnn_jax"
release = importlib.metadata.version("egnn-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# Pages are executed anew in each build; a cell that fails, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_output_stderr = "remove"
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # cells call egnn
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_display_short_literal_types = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wrap.css"]
html_title = "egnn_jax"
html_show_copyright = False

FORMULA = re.compile(r"(?<!\w)((?:[^\W\d_]|[rs]bf)['’]?)_(\{[^}]+\}|\w{1,3}|HOMO|LUMO)(?!\w)")
"""A symbol with its index in running text, such as m_ij."""

ARRAY_LIKE = re.compile(r"[~\w.]*Array \| [~\w.]*ndarray(?: \| [~\w.]+)*? \| complex")
"""What JAX's ArrayLike stands for."""


def setup(app: Any) -> None:
    """Show of Flax modules what users give, not what Flax adds, and indices of symbols lowered."""
    app.connect("doctree-read", _lower_indices)
    app.connect("autodoc-process-signature", _without_flax)
    app.connect("autodoc-skip-member", _skip)


def _lower_indices(_app, doctree):
    for text in list(doctree.findall(nodes.Text)):
        if type(text.parent) not in (nodes.paragraph, nodes.inline, nodes.emphasis):
            continue  # code, names or headings
        pieces = FORMULA.split(text)  # text, symbol, index, text, symbol, …
        parts = [nodes.Text(pieces[0])]
        for symbol, index, rest in zip(*(pieces[k::3] for k in (1, 2, 3)), strict=True):
            parts += [nodes.Text(symbol), nodes.subscript("", index.strip("{}")), nodes.Text(rest)]
        if len(parts) > 1:
            text.parent.replace(text, parts)


def _without_flax(_app, _what, _name, _obj, _options, signature, returns):
    if signature:
        # The fields that Flax adds come last.
        signature = re.sub(r",? parent: .*<flax\.linen\.module\._Sentinel .*$", ")", signature)
        signature = ARRAY_LIKE.sub("ArrayLike", signature)
        # A default such as <class 'package.Name'> is no Python, and could not be laid out.
        signature = re.sub(r"<\w+ '?[\w.]*?(\w+)'?( at \w+)?>", r"\1", signature)
    return signature, returns


def _skip(_app, _what, name, obj, skip, _options):
    return skip or inspect.isclass(obj) or name == "setup"  # of Flax modules
