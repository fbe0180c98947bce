"""The documentation: ``make docs`` builds it, without the net."""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import saliency  # noqa: E402
from docs.making.families import FAMILIES  # noqa: E402
from docs.making.gallery import stage  # noqa: E402
from docs.making.reference import write_reference  # noqa: E402

torch.set_num_threads(1)
stage(HERE.parent / "examples", HERE / "_examples")
write_reference(HERE / "api")

project, author, version = "saliency", "the authors of saliency", saliency.__version__
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"),
    *("docs.making.pictures", "docs.making.formulas"),
]
# The last one is a page of sphinx-gallery that loads scripts from elsewhere.
exclude_patterns = ["_build", "_examples", "making", "sg_execution_times.rst"]
default_role = "literal"

html_theme = "furo"
html_title = f"saliency {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"

sphinx_gallery_conf = {
    "examples_dirs": ["_examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": ".*",
    "subsection_order": [f"_examples/{key}" for key in ("tasks", *FAMILIES)],
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("docs.making.gallery.pictures",),
    "reset_modules": (),
    "plot_gallery": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 60,
    "thumbnail_size": (256, 256),
    "download_all_examples": False,
    "abort_on_example_error": True,
}
