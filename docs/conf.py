"""Settings of the documentation's site: ``sphinx-build -W -n docs build/docs``."""

import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "robust-lightning"
author = copyright = "The robust-lightning authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_templates", "README.md"]  # index.md includes it
templates_path = ["_templates"]

myst_heading_anchors = 3  # as GitHub: a link to page.md#heading

autodoc_inherit_docstrings = False  # torch's docstrings refer to pages of torch
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_ignore_module_all = False
# A page for each name of these, one page for all names of any other module.
PAGE_PER_NAME = [f"robust.{name}" for name in ("threat_models", "attacks", "bounds", "networks", "scores", "metrics")]
autosummary_context = {"packages": [*PAGE_PER_NAME, "lightning_modules", "datamodules", "callbacks"]}
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

OTHERS = "torch|nn|pytorch_lightning|torchmetrics|jsonargparse|numpy|matplotlib|collections|typing|pathlib|abc|datetime"
nitpick_ignore_regex = [  # other libraries: the build needs no network
    ("py:.*", rf"({OTHERS})\..*"),
    ("py:class", "Tensor|Size|Dataset|DataLoader|DistributedSampler|OptimizerCallable|LRSchedulerCallable"),
    ("py:(class|exc)", "Path|Split|UnpicklingError|Norm"),
    ("py:class", r".*\.(Item|Choice|Read|Placement|Checked|TrainedImages)"),  # names of their module alone
    ("py:.*", r"(.*\.)?_\w+"),  # private bases
]

html_theme = "furo"
html_title = "robust-lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}  # no public repository to edit
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def find_by_last_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """The target of a docstring's reference to a public class of ours by its last name, as settings name them."""
    if node["refdomain"] != "py":
        return None
    ours = env.domains.python_domain.objects.items()
    targets = {(entry.docname, entry.node_id) for name, entry in ours if name.split(".")[-1] == node["reftarget"]}
    if len(targets) != 1:
        return None
    ((page, anchor),) = targets
    return make_refnode(app.builder, node["refdoc"], page, anchor, content)


def skip_fields(app: Sphinx, kind: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Skip the fields of named tuples, which the docstring of their class describes."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the site's own handlers."""
    app.connect("missing-reference", find_by_last_name)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True}
