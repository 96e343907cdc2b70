"Sphinx's settings for the site; .ci/book/build.py calls Sphinx with them."
import sys
from configparser import ConfigParser
from pathlib import Path
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).parents[2]
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
project_copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.viewcode"]
myst_enable_extensions, myst_heading_anchors = ["attrs_block"], 3
nb_execution_mode, nb_render_markdown_format = "off", "gfm"   # what is stored is shown; `make notebooks` executes
pygments_dark_style, add_module_names, python_maximum_signature_line_length = "monokai", False, 100
python_use_unqualified_type_names, viewcode_follow_imported_members = True, False   # the latter would import torch
nitpicky, nitpick_ignore_regex = True, [("py:.*", r"(?!avmae\.).*")]   # names of the library must be found, those of others are only text
html_theme, html_title, html_copy_source, html_show_sourcelink = "furo", settings["title"], False, False
html_static_path, html_css_files = [str(Path(__file__).parent/"book.css")], ["book.css"]

def source_of(app, module: str) -> tuple[str, dict]:
    "The source that `[source]` leads to, read without importing the module."
    path = ROOT/(module.replace(".", "/") + ".py")
    analyzer = ModuleAnalyzer.for_string(path.read_text(encoding="utf-8"), module)
    return analyzer.code, analyzer.find_tags()

def setup(app) -> None: app.connect("viewcode-find-source", source_of)
