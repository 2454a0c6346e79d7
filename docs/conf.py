"""How Sphinx builds this folder: `python -m sphinx -W --keep-going docs site`."""

import simple_hierarchical_transformer

project = "simple_hierarchical_transformer"
author = copyright = "the simple_hierarchical_transformer authors"
version = release = simple_hierarchical_transformer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["figures"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in the docstring of a class are told once, not once more from its fields

html_theme = "furo"
html_title = f"simple_hierarchical_transformer {release}"
