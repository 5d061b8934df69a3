"""How Sphinx builds the site: `make docs`, offline; every example and every code cell runs, and a warning is an error."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "torchimplicit"
author = "the torchimplicit authors"
release = version = metadata.version("torchimplicit")
html_title = "torchimplicit"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "myst_nb",
    "docstrings",
]
exclude_patterns = ["_build", "gallery", "tests", "**/*.ipynb"]
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:class",
        r"(torch|collections|enum|typing|types|concurrent|pathlib)\..*|Tensor|Module|End|Kind|Layout|Preconditioning|[a-z_]+",
    ),  # no other site is asked
    ("py:mod", r"torchimplicit\..*"),
    ("py:(class|func)", r"torchimplicit\.\w+(\.\w+)+"),  # what is private to a file, in signatures
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"source_directory": "docs/", "top_of_page_buttons": []}

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # what a page shows has been computed for it, now
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_show_tb = True

python_maximum_signature_line_length = 88
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_srcset": ["2x"],
    "min_reported_time": 1,
    "parallel": 2,
    "remove_config_comments": True,
    "reset_modules": ("matplotlib", "own_state.fresh"),
    "show_memory": False,
    "write_computation_times": False,
}
