"What keeps the repository one thing: notebooks and modules, README and notebook, pins and ranges, the arrows between the wings."
import ast, base64, json, os, re, shutil, subprocess, sys, zipfile
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT/"avmae").rglob("*.py") if p.name != "_modidx.py")
NOTEBOOK_TOOLS = {"nbdev", "fastcore", "execnb", "ghapi", "ipython", "ipykernel", "jupyter", "jupyterlab", "jupyter-core", "nbformat", "nbclient",
                  "nbconvert", "papermill", "snakemake", "pytest"}
relative = lambda path: path.relative_to(ROOT).as_posix()

def config(key: str) -> str:
    "A value of settings.ini."
    from configparser import ConfigParser
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"][key]

def in_copy(folder: Path, *command: str) -> Path:
    "A copy of what nbdev reads and writes, after `command` ran in it; the user's tree is never touched."
    for name in ("nbs", "avmae"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs", "corpora"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT/name, folder)
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder

def files(root: Path, suffix: str) -> dict[str, bytes]:
    "The files with this suffix, by relative path."
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob(f"*{suffix}") if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}

def differing(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    "Names that only one side has, or that differ."
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))

def test_notebooks_equal_modules(tmp_path):
    exported = in_copy(tmp_path, "nbdev_export")
    changed = differing(files(exported/"avmae", ".py"), files(ROOT/"avmae", ".py"))
    assert not changed, f"edit the notebooks, not the modules, and run nbdev_export: {changed}"

def test_every_module_has_its_notebook():
    written = {path: re.search(r"File to edit: (\S+)\.$", path.read_text(), re.M) for path in MODULES}
    lost = [relative(path) for path, found in written.items() if found and not (path.parent/found[1]).resolve().is_file()]
    assert not lost, f"modules whose notebook is gone: {lost}"

def test_notebooks_are_clean(tmp_path):
    changed = differing(files(in_copy(tmp_path, "nbdev_clean")/"nbs", ".ipynb"), files(ROOT/"nbs", ".ipynb"))
    assert not changed, f"run nbdev_clean: {changed}"

def test_no_notebook_exports_over_300_lines():
    body = lambda path: re.split(r"^# %% (?!auto).*\n", path.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)[-1]   # without the header and __all__
    long = {relative(path): count for path in MODULES if (count := len(body(path).splitlines())) > 300}
    assert not long, f"split these along a seam: {long}"

@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebook_is_small_and_well_formed(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids), "cell ids repeat"
    assert cells[0]["source"][0].startswith("# ") and any(line.startswith("> ") for line in cells[0]["source"]), "starts with '# title' and '> subtitle'"
    pictures = [output["data"]["image/png"] for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    heavy = [len(base64.b64decode("".join(picture))) for picture in pictures if len(base64.b64decode("".join(picture))) > 100_000]
    assert not heavy, f"pictures of {heavy} bytes"

@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.parent.name == "experiments" or re.match("table|figure", p.name)], ids=relative)
def test_papermill_notebook_has_one_parameters_cell(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [k for k, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and cells[tagged[0] - 1]["cell_type"] == "markdown", "one tagged cell, with words before it"
    assert not any("injected-parameters" in cell["metadata"].get("tags", []) for cell in cells), "this is an executed copy, not the template"

def test_readme_is_its_notebook(tmp_path):
    subprocess.run([sys.executable, ROOT/".ci"/"readme.py", "--to", tmp_path/"README.md"], check=True)
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run `make readme`"

def test_readme_starts_with_the_two_commands_and_its_links_lead_somewhere():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    opening = text.split("\n## ")[0]
    assert "make reproduce" in opening and "make test" in opening
    links = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)
    lost = [link for link in links if not (ROOT/link).exists()]
    assert links and not lost, f"links to nothing: {lost}"

@pytest.mark.skipif(not (ROOT/"paper_figures"/"mini"/"runs.csv").exists(), reason="no result is committed yet")
def test_numbers_of_the_readme_are_those_of_the_committed_tables():
    tables = [path.read_text(encoding="utf-8") for path in sorted((ROOT/"paper_figures"/"mini").glob("*.md"))]
    shown = set(re.findall(r"[+-]?\d+\.\d ± \d+\.\d", (ROOT/"README.md").read_text(encoding="utf-8")))
    known = set(re.findall(r"[+-]?\d+\.\d ± \d+\.\d", "\n".join(tables)))
    assert shown and shown <= known, f"not in paper_figures/mini: {sorted(shown - known)}"

def pins(path: Path, mark: str = "") -> list[str]:
    "The lines name==version of a file."
    return re.findall(rf"^{mark}([\w.-]+==\S+)$", path.read_text(), re.M)

def test_environment_pins_equal_constraints():
    assert len(pins(ROOT/"constraints.txt")) > 50
    assert pins(ROOT/"environment.yml", r" +- ") == pins(ROOT/"constraints.txt")

def test_pins_lie_in_the_stated_ranges():
    pinned = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins(ROOT/"constraints.txt"))}
    for stated in map(Requirement, (config("requirements") + " " + config("dev_requirements")).split()):
        assert canonicalize_name(stated.name) in pinned, f"{stated.name} is not pinned: run python .ci/pins.py"
        assert stated.specifier.contains(pinned[canonicalize_name(stated.name)]), f"{stated} against the pin {pinned[canonicalize_name(stated.name)]}"

@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    "The wheel that `pip install .` would make."
    folder = tmp_path_factory.mktemp("wheel")
    in_copy(folder, sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('dist')")
    return zipfile.ZipFile(next((folder/"dist").glob("*.whl")))

def test_wheel_asks_for_no_notebook_tooling(wheel):
    metadata = message_from_string(wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode())
    needed = {canonicalize_name(r.name) for r in map(Requirement, metadata.get_all("Requires-Dist")) if r.marker is None}
    assert "torch" in needed and not needed & NOTEBOOK_TOOLS
    assert (metadata["License-Expression"] or metadata["License"]) == "Apache-2.0"   # newer and older setuptools
    assert metadata["Requires-Python"] == ">=3.11"

def test_wheel_imports_without_notebook_tooling(wheel, tmp_path):
    wheel.extractall(tmp_path)
    tops = {path.split("/")[0] for path in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"avmae"}, "something else than avmae is packed"
    code = f"""
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {sorted(NOTEBOOK_TOOLS | {'IPython', 'jupyter_core'})!r}: raise ImportError(name + ' is notebook tooling')
sys.meta_path.insert(0, Refuse()); sys.path.insert(0, {str(tmp_path)!r})
import avmae
assert avmae.__file__.startswith({str(tmp_path)!r})
for module in pkgutil.walk_packages(avmae.__path__, 'avmae.'): importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def imports(path: Path) -> set[str]:
    "The modules that a file of avmae imports, also inside functions, with relative ones resolved."
    package, found = path.relative_to(ROOT).with_suffix("").parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names if module == "avmae" or not node.module}
    return found

FORBIDDEN = {"model": {"data", "train", "paper", "cli", "options", "hub", "scenic", "flax"}, "data": {"model", "train", "paper", "cli", "options", "hub", "scenic", "flax"},
             "paper": {"model", "data", "train", "cli", "options", "hub", "scenic", "flax"}, "train": {"paper", "cli", "options"}}

@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_arrows_go_down(path):
    wing = path.relative_to(ROOT/"avmae").parts[0]
    upward = {name for name in imports(path) if name.startswith("avmae.") and name.split(".")[1] in FORBIDDEN.get(wing, ())}
    assert not upward, f"{relative(path)} must not import {upward}"

@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_third_party_imports_are_stated(path):
    stated = {canonicalize_name(Requirement(r).name) for r in config("requirements").split()}
    tops = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"avmae"}
    owners = packages_distributions()
    unstated = {top for top in tops if not {canonicalize_name(owner) for owner in owners.get(top, [top])} & stated}
    assert not unstated, f"{relative(path)} imports {unstated}, which settings.ini does not ask for"

def definitions(path: Path) -> list[ast.AST]:
    "All functions and classes of a file."
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]

@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short_and_public_names_documented(path):
    long = [node.name for node in definitions(path) if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= 60]
    public = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
    bare = [node.name for node in public if not ast.get_docstring(node)]
    assert not long, f"over 60 lines: {long}"
    assert not bare, f"without docstring: {bare}"

def tracked() -> list[Path]:
    "The files that git would commit; all of them where there is no git."
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0: return [path for name in listed.stdout.split("\0") if name and (path := ROOT/name).is_file()]
    skipped = {".venv", "runs", "corpora", ".git", ".snakemake", "__pycache__", ".pytest_cache", ".mypy_cache"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]

def test_no_path_of_a_machine_in_any_file():
    pattern = re.compile(rb"(?<![\w.:~-])/(home|Users|root|work|tmp|mnt|scratch)/[\w.]+")
    found = {relative(path): match[0].decode() for path in tracked() if path.suffix not in {".png", ".svg", ".mp4"} and (match := pattern.search(path.read_bytes()))}
    assert not found, f"absolute paths: {found}"
