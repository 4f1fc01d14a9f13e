"""How Sphinx reads what tools/website.py lays out: nothing is run, nothing is fetched."""

import website
from ect_nb import __version__

project, author = "ect_nb", "The ect_nb authors"
copyright = "the ect_nb authors, Apache-2.0"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]

# Notebooks: as they are stored
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["amsmath", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
myst_heading_slug_func = "website.slug"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]
exclude_patterns = ["_static", "model_missing.md"]

# The package: from its docstrings
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"
autodoc_mock_imports = []
add_module_names = False

# Pages
html_theme = "pydata_sphinx_theme"
html_title = "ect_nb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
smartquotes = False
html_theme_options = {
    "logo": {"text": "ect_nb"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "model": [], "explorer": []},
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "show_toc_level": 1,
}
html_sidebars = {"index": [], "model": [], "explorer": [], "minute": []}


def setup(app):
    app.connect("autodoc-process-docstring", website.docstring)
