"""The book: no chapter is missing, readers see no directives, links follow from what the files say, every public name is described.

Sphinx itself renders a small book here, with all warnings as errors; `make docs` renders the whole one."""
import ast, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT/".ci"/"book"
sys.path.insert(0, str(FOLDER))
import api, build, chapters
NOTEBOOKS = {path for path in (ROOT/"nbs").rglob("*.ipynb") if not {".ipynb_checkpoints", "runs", "corpora"} & set(path.parts)}

@pytest.fixture(scope="module")
def book() -> build.Book: return build.Book()

@pytest.fixture(scope="module")
def pages(book) -> dict[str, str]: return build.pages(book)

def test_every_notebook_is_a_chapter_once(book):
    listed = [chapter.path for chapter in book.chapters]
    assert sorted(listed) == sorted(path.relative_to(ROOT/"nbs").as_posix() for path in NOTEBOOKS if path.name != "index.ipynb")

def test_reading_order_knows_no_notebook_or_folder_that_is_gone():
    assert set(chapters.UNNUMBERED) <= {path.stem for path in NOTEBOOKS}
    assert all((ROOT/"nbs"/wing).is_dir() for wing in chapters.WINGS)
    assert list(chapters.chapters())[:len(chapters.WINGS)] == list(chapters.WINGS) == ["data", "model", "train", "paper", "experiments", "benchmarks", "."]

def test_front_page_lists_every_chapter_in_reading_order(book):
    outputs = [output for cell in json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"] for output in cell.get("outputs", [])]
    assert chapters.table() in ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs], "run `make readme`"
    readme = (ROOT/"README.md").read_text(encoding="utf-8").partition("\n## The notebooks\n")[2]
    places = [readme.index(f"](nbs/{chapter.path}) ") for chapter in book.chapters]
    assert places == sorted(places)

def test_a_notebook_without_title_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    path = tmp_path/"nbs"/"new.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["no title"]}]}))
    with pytest.raises(ValueError, match=r"nbs/new\.ipynb does not start"): chapters.read(path)

def cell(kind: str, source: str, *outputs: dict) -> dict:
    "A cell as a notebook file has it."
    return {"cell_type": kind, "id": "0", "metadata": {}, "source": source} | ({"outputs": list(outputs)} if kind == "code" else {})

@pytest.mark.parametrize("source", ["#| hide\nassert True", "#|hide\nassert True", "#| export\n#| hide\nx = 1", "#| default_exp model.masking", "#| export\n"])
def test_hidden_and_empty_cells_are_dropped(book, source):
    assert build.shown(book, "model/02_masking.ipynb", cell("code", source)) is None

def test_directives_become_tags():
    show = lambda source: build.shown(None, "a.ipynb", cell("code", source))
    exported, quiet = show("#| export\nx = '#| no directive'"), show("#| echo: false\nx")
    assert (exported["source"], exported["metadata"]) == ("x = '#| no directive'", {"tags": ["exported"]})
    assert (quiet["source"], quiet["metadata"]) == ("x", {"tags": ["remove-input"]})

def test_no_page_shows_a_directive_and_none_is_lost(book, pages):
    for path in NOTEBOOKS:
        made = json.loads(pages[path.relative_to(ROOT/"nbs").as_posix()])
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert not [c["source"] for c in made["cells"] if c["cell_type"] == "code" and re.search(r"^#\|", c["source"], re.M)]
        words = lambda content: [c for c in content["cells"] if c["cell_type"] == "markdown"]
        assert len(words(made)) == len(words(stored)) + (path.name == "index.ipynb")
        kept = [c for c in stored["cells"] if c["cell_type"] == "code" and "#| hide" not in "".join(c["source"])]
        outputs = lambda cells: [sorted(output.get("data", output)) for c in cells if c["cell_type"] == "code" for output in c["outputs"]]
        assert outputs(made["cells"]) == outputs(kept), f"{path.name}: an output got lost"

@pytest.mark.parametrize("text, expected", [
    ("see [it](00_frontend.ipynb#sound)", "see [it](00_frontend.ipynb#sound)"),
    ("[wing](../data) [front](../index.ipynb)", "[wing](../data/index.md) [front](../index.ipynb)"),
    ("[test](../../tests/test_model.py)", "[test](../tests/test_model.md)"),
    ("[code](../../avmae/model/tokens.py)", "[code](../api/avmae.model.tokens.md)"),
    ("[web](https://arxiv.org) [here](#there)", "[web](https://arxiv.org) [here](#there)"),
    ("as `nbs/fidelity.ipynb` says", "as [`nbs/fidelity.ipynb`](../fidelity.ipynb) says"),
    ("`avmae.model.masking.random_mask` and `avmae.nothing`", "{py:obj}`avmae.model.masking.random_mask <avmae.model.masking.random_mask>` and `avmae.nothing`"),
    ("```\n[code](stays) `nbs/fidelity.ipynb`\n```", "```\n[code](stays) `nbs/fidelity.ipynb`\n```")])
def test_links_lead_to_pages(book, text, expected):
    assert build.linked(book, "model/01_tokens.ipynb", text) == expected

def test_a_link_to_nothing_is_refused_by_name(book):
    with pytest.raises(ValueError, match="nbs/model/01_tokens.ipynb links to nbs/model/lost.ipynb"): build.linked(book, "model/01_tokens.ipynb", "[x](lost.ipynb)")

def test_tests_of_a_module_are_those_that_import_it(book):
    for module in book.modules:
        name = re.compile(rf"^\s*(?:from|import) {re.escape(module)}\b", re.M)
        importing = {path.stem for path in (ROOT/"tests").glob("test_*.py") if name.search(path.read_text(encoding="utf-8"))}
        assert importing <= set(book.tests_of(book.chapter_of(module))), module
    assert book.modules_in("from avmae import AVMAE\nfrom avmae.data import mini") == ["avmae.data.mini", "avmae.model.avmae"]
    assert book.modules_in("import avmae.data.minimal") == []

def test_chapter_module_and_tests_link_to_each_other(book, pages):
    for chapter in book.chapters:
        opening = json.loads(pages[chapter.path])["cells"][0]["source"]
        for module in book.modules_of(chapter): assert f"api/{module}.md)" in opening
        if chapter.module: assert f"]({build.to('api/x.md', chapter.path)})" in pages[f"api/{chapter.module}.md"]
        for test in book.tests_of(chapter):
            assert f"tests/{test}.md)" in opening and f"]({build.to('tests/x.md', chapter.path)})" in pages[f"tests/{test}.md"]

def test_every_public_name_is_on_the_page_of_its_module_and_in_the_overview(book, pages):
    for name, module in book.modules.items():
        for public in api.public(module):
            described, _, last = book.names[f"{name}.{public}"].rpartition(".")
            assert re.search(rf"{{py:(function|class|data)}} {re.escape(last)}\b", pages[f"api/{described}.md"]), f"{name}.{public} is not described"
            assert f"`{public} <{described}.{last}>`" in pages["api/index.md"]
    assert set(book.exported) == set(api.public(book.package))

def test_every_public_function_and_class_has_a_docstring(book):
    bare = [f"{name}.{node.name}" for name, module in book.modules.items() for node in module.tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in api.public(module) and not ast.get_docstring(node)]
    assert not bare, f"without docstring: {bare}"

def module(tmp_path, source: str) -> api.Module:
    "A module of this source."
    (tmp_path/"m.py").write_text(source)
    return api.read(tmp_path/"m.py", "avmae.m")

def test_shapes_units_and_errors_are_read_from_the_source(tmp_path):
    found = api.entries(module(tmp_path, '''__all__ = ["RATE", "Config", "cut", "Mask"]
from .model.masking import Mask

# samples per second
RATE = 16_000

class Config(Base):
    "What `cut` takes, [a,b]."
    seconds: float = 2.   # of a *window*
    @property
    def half(self) -> float: return self.seconds / 2

def cut(x: Tensor, *, at: float = RATE) -> Tensor:
    "A window f32 [n]."
    if at < 0: raise ValueError(f"at is {at}; it starts at 0.")
    if at > 9: raise KeyError(at)

def _private(): pass
'''))
    assert sorted(found) == ["Config", "Mask", "RATE", "cut"] and "{py:obj}`avmae.model.masking.Mask`" in found["Mask"]
    assert "`= 16000`" in found["RATE"] and "samples per second" in found["RATE"]
    assert "- `seconds: float=2.0`: of a \\*window\\*" in found["Config"].replace(" = ", "=")
    assert "Extends `Base`" in found["Config"] and "What `cut` takes, \\[a,b\\]." in found["Config"] and "{py:property} half\n:type: float" in found["Config"]
    assert "{py:function} cut(x: Tensor, *, at: float=RATE) -> Tensor" in found["cut"]
    assert "- `ValueError`: at is \\{at\\}; it starts at 0." in found["cut"] and "- `KeyError`\n" in found["cut"]

def test_pins_of_the_extra_lie_in_its_ranges():
    stated = re.search(r"^docs_requirements = (.+)$", (ROOT/"settings.ini").read_text(), re.M)[1].split()
    pinned = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT/"constraints.txt").read_text(), re.M)}
    assert stated and all(requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]) for requirement in map(Requirement, stated))

NOTEBOOK = {"cells": [
    cell("markdown", "# Doubling\n\n> Twice as much\n\nSee [the front page](../index.ipynb), `tests/test_twice.py` and [below](#how)."), cell("code", "#| default_exp model.twice"),
    cell("code", "#| export\ndef twice(x): return 2 * x"), cell("markdown", "## How"), cell("code", "#| hide\nassert 'secret'"),
    cell("code", "#| echo: false\nshow(twice)", {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<audio controls src='data:audio/wav;base64,UklGRg=='></audio>", "text/plain": "sound"}})]}
MODULE = '''"""Twice as much"""
__all__ = ["twice"]
def twice(x: int) -> int:
    "The double of `x` [b,n]; a *plain* <docstring> with_underscores_."
    if x < 0: raise ValueError(f"x is {x}, below 0.")
    return 2 * x
'''

@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    "A repository with one chapter, one module and one test, and the site that build.py made of it."
    root = tmp_path_factory.mktemp("small")
    for folder in ("nbs/model", "avmae/model", "tests"): (root/folder).mkdir(parents=True)
    shutil.copytree(FOLDER, root/".ci"/"book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"settings.ini", root)
    number = lambda content: json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"language_info": {"name": "python"}}, "cells": [c | {"id": f"c{k}"} for k, c in enumerate(content["cells"])]})
    (root/"nbs"/"index.ipynb").write_text(number({"cells": [cell("markdown", "# The book\n\n> In short\n\n[Models](model)")]}))
    (root/"nbs"/"model"/"00_twice.ipynb").write_text(number(NOTEBOOK))
    (root/"avmae"/"__init__.py").write_text("__all__ = []\n")
    (root/"avmae"/"model"/"twice.py").write_text(MODULE)
    (root/"tests"/"test_twice.py").write_text('"About doubling."\nfrom avmae.model.twice import twice\n')
    done = subprocess.run([sys.executable, root/".ci"/"book"/"build.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root/"_site"/"html"

def test_site_renders_without_a_warning_and_hides_what_is_not_for_readers(small):
    text = (small/"model"/"00_twice.html").read_text(encoding="utf-8")
    assert "<audio controls" in text and "tag_exported" in text
    assert not [word for word in ("#|", "secret", "show(", "default_exp") if word in text]

def test_rendered_pages_link_chapter_module_source_and_test(small):
    links = lambda page: set(re.findall(r'href="([^"]+)"', (small/page).read_text(encoding="utf-8")))
    assert {"../api/avmae.model.twice.html", "../tests/test_twice.html", "../index.html", "#how"} <= links("model/00_twice.html")
    assert {"../model/00_twice.html", "../tests/test_twice.html", "../_modules/avmae/model/twice.html#twice"} <= links("api/avmae.model.twice.html")
    assert "../model/00_twice.html" in links("tests/test_twice.html") and "model/index.html" in links("index.html")

def test_rendered_docstring_shows_its_characters(small):
    text = re.sub(r"<[^>]+>", "", (small/"api"/"avmae.model.twice.html").read_text(encoding="utf-8"))
    assert "The double of x [b,n]; a *plain* &lt;docstring&gt; with_underscores_." in text and "x is {x}, below 0." in text

def test_a_lost_link_is_named(small, tmp_path):
    copy = shutil.copytree(small, tmp_path/"html")
    assert build.lost_links(copy) == []
    (copy/"tests"/"test_twice.html").unlink()
    page = copy/"index.html"
    page.write_text(page.read_text().replace("</body>", '<a href="#nowhere">x</a></body>'))
    lost = build.lost_links(copy)
    assert "index.html links to #nowhere, which is not there." in lost and any("model/00_twice.html links to ../tests/test_twice.html" in line for line in lost)
