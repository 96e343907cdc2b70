"""The notebooks as a site: python .ci/book/build.py writes _site/html from the stored outputs. Nothing is executed, nothing is fetched.

Each chapter is its notebook without hidden cells and directive lines; its module, its tests and its neighbours are linked from what
the files themselves say. The pages are laid out in _site/source, where Sphinx renders what changed since the last time."""
import ast, functools, json, posixpath, re, subprocess, sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from urllib.parse import unquote
import api
from chapters import ROOT, WINGS, Chapter, chapters

SITE = ROOT/"_site"
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)")
SOURCE = re.compile(r"(\]\((?![a-z]+:)[^)\s#]+)\.(?:ipynb|md)\b")
MENTION = re.compile(r"(?<!\[)`((?:nbs|tests|avmae)/[\w/]+\.(?:ipynb|py))`")
NAME = re.compile(r"(?<!\[)`(avmae(?:\.\w+)+)`")
DIRECTIVE = re.compile(r"^#\|[ \t]*(.*)\n?", re.M)
OPENING = re.compile(r"\A(# .+\n+> .+\n?)")
DOTTED = re.compile(r"\bavmae(?:\.\w+)+")

class Book:
    "What the pages are made from: chapters, modules, tests, and which test is about which of the others."
    def __init__(self):
        self.wings = chapters()
        self.chapters = [chapter for listed in self.wings.values() for chapter in listed]
        found = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT/"avmae").rglob("*.py")) if path.name[0] != "_"}
        self.modules = {name: api.read(path, name) for name, path in found.items()}
        self.package = api.read(ROOT/"avmae"/"__init__.py", "avmae")
        self.names = {f"{name}.{public}": api.borrowed(module).get(public, f"{name}.{public}") for name, module in self.modules.items() for public in api.public(module)}
        self.exported = {public: full for public in api.public(self.package) for name, full in self.names.items() if name == full and name.endswith(f".{public}")}
        self.tests = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT/"tests").glob("test_*.py"))}
        self.tested = {stem: self.modules_in(text) for stem, text in self.tests.items()}
        self.files: set[str] = set()   # of the repository, that a page links to or shows

    def chapter_of(self, module: str) -> Chapter:
        "The notebook that exports a module."
        return next(chapter for chapter in self.chapters if chapter.module == module)

    def modules_in(self, code: str) -> list[str]:
        "The modules that a file imports from or names, also through `from avmae import ...`."
        named = set(DOTTED.findall(code))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module: named |= {f"{node.module}.{alias.name}" for alias in node.names}
        named |= {full for public, full in self.exported.items() if f"avmae.{public}" in named}
        return [module for module in self.modules if any(name == module or name.startswith(f"{module}.") for name in named)]

    def modules_of(self, chapter: Chapter) -> list[str]:
        "The module that a chapter exports, or else those that it uses."
        if chapter.module: return [chapter.module]
        cells = json.loads((ROOT/"nbs"/chapter.path).read_text(encoding="utf-8"))["cells"]
        return self.modules_in("\n".join(line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines() if line[:1] not in "%!"))

    @functools.cache
    def tests_of(self, chapter: Chapter) -> list[str]:
        "The tests that import or name a chapter's module, or that name a notebook without one."
        if chapter.module: return [stem for stem, modules in self.tested.items() if chapter.module in modules]
        path = Path(chapter.path)
        named = re.compile(rf'\b{path.stem}\.ipynb|"nbs"/"{path.parent}"|parent\.name == "{path.parent}"')
        return [stem for stem, text in self.tests.items() if named.search(text)]

    def placed(self, path: str, page: str) -> str:
        "Where a path of the repository, which `page` links to, is found in the site; ValueError if nothing is there."
        inner = posixpath.relpath(path, "nbs")
        if path == "tests" or inner in self.wings: return posixpath.normpath(f"{inner if inner in self.wings else path}/index.md")
        if path.endswith(".ipynb") and (ROOT/path).is_file(): return inner
        if path.endswith(".py") and Path(path).stem in self.tests: return f"tests/{Path(path).stem}.md"
        if path.endswith(".py") and path[:-3].replace("/", ".") in self.modules: return f"api/{path[:-3].replace('/', '.')}.md"
        if not (ROOT/path).is_file(): raise ValueError(f"nbs/{page} links to {path}, which is no file, and no folder with chapters or tests.")
        self.files.add(path)
        return path

def to(page: str, target: str) -> str:
    "The link from one page of the site to another."
    return posixpath.relpath(target, posixpath.dirname(page) or ".")

def outside_fences(change: Callable[[str], str], text: str) -> str:
    "Change the prose of markdown and leave its fenced code alone."
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(text))

def linked(book: Book, page: str, text: str, folder: str | None = None) -> str:
    "Prose whose links lead to pages of the site, as do the files and public names that it mentions; they start at `folder`, which is that of the notebook if not given."
    if folder is None: folder = posixpath.join("nbs", posixpath.dirname(page))
    def change(prose: str) -> str:
        prose = LINK.sub(lambda m: m[1] + to(page, book.placed(posixpath.normpath(posixpath.join(folder, m[2])), page)), prose)
        prose = MENTION.sub(lambda m: f"[`{m[1]}`]({to(page, book.placed(m[1], page))})" if (ROOT/m[1]).is_file() else m[0], prose)
        return NAME.sub(lambda m: f"{{py:obj}}`{m[1]} <{book.names[m[1]]}>`" if m[1] in book.names else m[0], prose)
    return outside_fences(change, text)

def rendered(output: str) -> str:
    "Markdown of an output, in which Sphinx resolves nothing: links lead to the pages as they are called in the end."
    return SOURCE.sub(r"\1.html", output)

def pages_of(page: str, *groups: tuple[str, list[tuple[str, str]]]) -> str:
    "One line of links: a word and then (text, page) for each of its pages."
    shown = [f"{head} " + ", ".join(f"[{text}]({to(page, target)})" for text, target in targets) for head, targets in groups if targets]
    return "{.links}\n" + " · ".join(shown)

def around(book: Book, chapter: Chapter) -> str:
    "The links of a chapter: its module or those that it uses, its tests."
    modules = [(f"`{name}`", f"api/{name}.md") for name in book.modules_of(chapter)]
    tests = [(f"`{stem}`", f"tests/{stem}.md") for stem in book.tests_of(chapter)]
    return pages_of(chapter.path, ("Exported to" if chapter.module else "Uses", modules), ("Tests:", tests)) + f" · Notebook: `nbs/{chapter.path}`" + ", exported cells have a blue edge" * bool(chapter.module)

def shown(book: Book, page: str, cell: dict) -> dict | None:
    "A cell as readers see it; None if it is hidden or holds nothing but directives."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return cell | {"source": linked(book, page, source)}
    directives = DIRECTIVE.findall(source)
    code = DIRECTIVE.sub("", source).strip("\n")
    if "hide" in directives or not code: return None
    tags = ["exported"] * ("export" in directives) + ["remove-input"] * ("echo: false" in directives)
    for data in (output.get("data", {}) for output in cell["outputs"]):
        if "text/markdown" in data: data["text/markdown"] = rendered(linked(book, page, "".join(data["text/markdown"])))
    return cell | {"source": code, "metadata": {"tags": tags}}

def notebook(book: Book, page: str, links: str, after: str = "") -> str:
    "A notebook as a page, with links below its subtitle and more markdown at its end."
    content = json.loads((ROOT/"nbs"/page).read_text(encoding="utf-8"))
    cells = [made for cell in content["cells"] if (made := shown(book, page, cell))]
    cells[0]["source"] = OPENING.sub(lambda m: f"{m[1].rstrip()}\n\n{links}\n\n", cells[0]["source"])
    if after: cells.append({"cell_type": "markdown", "id": "afterwards", "metadata": {}, "source": after})
    return json.dumps(content | {"cells": cells}, ensure_ascii=False)

def toctree(*pages: str, caption: str = "", hidden: bool = True) -> str:
    "Sphinx's list of the pages that follow; it makes the sidebar and the order of reading."
    options = (f":caption: {caption}\n" if caption else "") + (":hidden:\n" if hidden else "")
    return f"```{{toctree}}\n{options}\n" + "\n".join(pages) + "\n```"

def wing(name: str, listed: list[Chapter]) -> str:
    "The first page of a wing: its chapters, each with its subtitle."
    title, explained = WINGS.get(name, (name, ""))
    lines = [f"1. [{chapter.title}](/{chapter.path}): {chapter.subtitle}" for chapter in listed]
    return "\n\n".join([f"# {title}", f"> {explained[:1].upper()}{explained[1:]}", "\n".join(lines), toctree(*(f"/{chapter.path}" for chapter in listed))]) + "\n"

def module_page(book: Book, name: str) -> str:
    "The page of a module, with the way back to its chapter."
    page, chapter = f"api/{name}.md", book.chapter_of(name)
    tests = [(f"`{stem}`", f"tests/{stem}.md") for stem in book.tests_of(chapter)]
    return api.page(book.modules[name], pages_of(page, ("Explained in", [(chapter.title, chapter.path)]), ("Tests:", tests)))

def overview(book: Book) -> str:
    "The page that names everything public, module by module."
    link = lambda name, full: f"{{py:obj}}`{name} <{full}>`"
    parts = ["# Reference", "> Every public name; the pages of the modules say what it takes and returns, in shapes and units, and what it raises",
             "## avmae", ", ".join(link(*item) for item in book.exported.items())]
    order = [chapter.module for chapter in book.chapters if chapter.module]
    for name in order: parts += [f"## [{name}]({name}.md)", book.chapter_of(name).subtitle, ", ".join(link(public, book.names[f"{name}.{public}"]) for public in api.entries(book.modules[name]))]
    return "\n\n".join([*parts, toctree(*order)]) + "\n"

def test_page(book: Book, stem: str) -> str:
    "A test file as it is, with links to the chapters whose modules it imports."
    page, text = f"tests/{stem}.md", book.tests[stem]
    about = [(chapter.title, chapter.path) for chapter in book.chapters if stem in book.tests_of(chapter)]
    return "\n\n".join([f"# {stem}", f"> {api.plain(ast.get_docstring(ast.parse(text)) or '')}", pages_of(page, ("About", about)), f"~~~python\n{text}~~~"]) + "\n"

def tests_overview(book: Book) -> str:
    "The list of all tests."
    first = lambda text: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    lines = [f"- [`{stem}`]({stem}.md): {api.plain(first(text))}" for stem, text in book.tests.items()]
    return "\n\n".join(["# Tests", "> What `make test` runs, besides every cell of every notebook", "\n".join(lines), toctree(*book.tests)]) + "\n"

def pages(book: Book) -> dict[str, str]:
    "The whole site as Sphinx reads it, by path."
    first = lambda name: posixpath.normpath(f"{name}/index") if name != "." else "own"
    contents = toctree(*map(first, book.wings), caption="Chapters") + "\n\n" + toctree("api/index", "tests/index", caption="Reference")
    found = {"index.ipynb": notebook(book, "index.ipynb", "", contents)}
    found |= {f"{first(name)}.md": wing(name, listed) for name, listed in book.wings.items()}
    found |= {chapter.path: notebook(book, chapter.path, around(book, chapter)) for chapter in book.chapters}
    found |= {"api/index.md": overview(book), "tests/index.md": tests_overview(book)}
    found |= {f"api/{name}.md": module_page(book, name) for name in book.modules}
    return found | {f"tests/{stem}.md": test_page(book, stem) for stem in book.tests}

def file(book: Book, path: str) -> bytes:
    "A file of the repository as the site has it; markdown is a page, which no list of pages names."
    if not path.endswith(".md"): return (ROOT/path).read_bytes()
    return ("---\norphan: true\n---\n\n" + linked(book, path, (ROOT/path).read_text(encoding="utf-8"), posixpath.dirname(path))).encode()

def files(book: Book) -> dict[str, bytes]:
    "What the pages link to, and what that links to in turn."
    found: dict[str, bytes] = {}
    while todo := sorted(book.files - found.keys()): found |= {path: file(book, path) for path in todo}
    return found

def lay_out(book: Book, folder: Path) -> None:
    "Write what changed, remove what is gone."
    wanted = {path: text.encode() for path, text in pages(book).items()}
    wanted |= files(book)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted: path.unlink()
    for name, content in wanted.items():
        path = folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content: path.write_bytes(content)

def lost_links(site: Path) -> list[str]:
    "Links within a rendered site that lead to no file or to no anchor of it."
    text = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'<[^<>]+\sid="([^"]+)"', html)) for path, html in text.items()}
    lost = []
    for path, html in text.items():
        for target in sorted(set(re.findall(r'<[^<>]+\s(?:href|src)="(?![a-z]+:)([^"]+)"', html))):
            name, _, anchor = unquote(unescape(target)).partition("#")
            file = (path.parent/name.partition("?")[0]).resolve() if name else path
            if not file.is_file() or anchor and anchor not in anchors.get(file, {anchor}): lost.append(f"{path.relative_to(site)} links to {target}, which is not there.")
    return lost

def main() -> int:
    "Lay out the pages, let Sphinx render them, follow every link; a warning is an error."
    lay_out(Book(), SITE/"source")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", str(SITE/"doctrees"), str(SITE/"source"), str(SITE/"html")]
    status, lost = subprocess.run(command).returncode, lost_links(SITE/"html")
    print("\n".join(lost), file=sys.stderr, end="\n" * bool(lost))
    return status or int(bool(lost))

if __name__ == "__main__":
    try: status = main()
    except ValueError as error: sys.exit(f"The site was not made: {error}")
    print("The site was not finished: put right what is said above." if status else f"The site is in {SITE.relative_to(ROOT)}/html: open index.html in a browser.")
    sys.exit(status)
