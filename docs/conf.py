"""How the site is built: `make docs`.

Sphinx reads from the root of the repository, so that tutorials and notebooks are pages without
being copied, and so that a link between two files means the same here and on a code host.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from medverse_nb import __version__  # noqa: E402, only found after the line above

project = "medverse_nb"
author = "The medverse_nb developers"
project_copyright = author
release = version = __version__

root_doc = "docs/index"
PAGES = ("docs", "tutorials", "notebooks", "README.md", "CHANGELOG.md", "LICENSE")
exclude_patterns = [
    *(path.name for path in ROOT.iterdir() if path.name not in PAGES),
    "docs/_*",
    "**/.ipynb_checkpoints",
]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "command_line",
    "docstring_sections",
    "mathml",
]

# --- pages -------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those that `make test-notebooks` checks
nb_ipywidgets_js = {}  # it would come from another host; saved notebooks hold no widget
nb_merge_streams = True
nb_code_prompt_show = "Show the solution"  # nothing but solutions is hidden
nb_code_prompt_hide = "Hide the solution"

# --- docstrings --------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {
    name: name
    for name in (
        "Align", "Classes", "Compat", "FloatArray", "Floats", "Labels", "PredictFrom", "Progress",
        "Record", "Register", "Source", "Task", "TrustLevel", "Values",
    )
}  # fmt: skip
default_role = "py:obj"  # `name` in a docstring is a link where there is such a name, else code
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# --- look --------------------------------------------------------------------------------
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "medverse_nb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "to_first_page.html"}
smartquotes = False  # "box" and --images are code
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"


def fold_solutions(_app: object, docname: str, source: list[str]) -> None:
    """Hide the solutions of a tutorial's exercises until they are asked for, as JupyterLab does."""
    if not docname.startswith(("tutorials/", "notebooks/")) or not source[0].startswith("{"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if "solution" in cell["metadata"].get("tags", ()):
            cell["metadata"]["tags"].append("hide-input")
    source[0] = json.dumps(notebook)


OUTSIDE = re.compile(
    r"<(?:script|img|iframe|link|source)\b[^>]*\b(?:src|href)=.(?:https?:)?//[^>]*>"
)


def refuse_outside_hosts(app: Any, error: Exception | None) -> None:
    """Fail where a page would load anything from another host: readers may have no internet."""
    for page in [] if error else Path(app.outdir).rglob("*.html"):
        if found := OUTSIDE.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page.name} would load from another host: {found[0]}")


def setup(app: Any) -> None:
    """Connect what is of this site alone."""
    app.connect("source-read", fold_solutions)
    app.connect("build-finished", refuse_outside_hosts)
