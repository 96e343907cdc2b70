"What is handed out: the wheel, the sdist, and what either installs."
import os, shutil, subprocess, sys, tarfile, venv, zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKED = ("avmae", "settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
EXTRAS = {"train", "hub", "download", "dev"}

def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])

def build(source: Path, kind: str, out: Path) -> Path:
    "Build a wheel or an sdist of the tree in `source`, as a frontend does, without its isolation."
    code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out/done.stdout.split()[-1]

@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")/"avmae"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        copy(ROOT/name, source/name, **({"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}))
    return build(source, "sdist", tmp_path_factory.mktemp("dist"))

@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    "Built from the sdist alone, as pip does where there is no wheel."
    with tarfile.open(sdist) as packed: packed.extractall(folder := tmp_path_factory.mktemp("unpacked"), filter="data")
    return build(next(folder.iterdir()), "wheel", sdist.parent)

def test_sdist_holds_what_it_is_built_from_and_no_tests(sdist):
    with tarfile.open(sdist) as packed: names = {name.split("/", 1)[1] for name in packed.getnames() if "/" in name}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "nbs", "runs", "corpora", "paper_figures"))]

def test_wheel_of_the_sdist_holds_every_module(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT/"avmae").rglob("*.py")}
    assert modules <= set(zipfile.ZipFile(wheel).namelist())

def test_metadata_says_what_settings_say(wheel):
    packed = zipfile.ZipFile(wheel)
    about, stated = message_from_bytes(packed.read(next(name for name in packed.namelist() if name.endswith("METADATA")))), settings()
    asked = [Requirement(line) for line in about.get_all("Requires-Dist")]
    bare = {(r.name, str(r.specifier)) for r in asked if r.marker is None}
    assert bare == {(r.name, str(r.specifier)) for r in map(Requirement, stated["requirements"].split())}
    assert EXTRAS <= set(about.get_all("Provides-Extra"))
    for extra in EXTRAS:
        of_extra = {(r.name, str(r.specifier)) for r in asked if r.marker and r.marker.evaluate({"extra": extra})}
        assert of_extra == {(r.name, str(r.specifier)) for r in map(Requirement, stated[f"{extra}_requirements"].split())}, extra

def test_every_range_has_a_lower_bound():
    loose = [str(r) for r in map(Requirement, settings()["requirements"].split()) if not any(part.operator == ">=" for part in r.specifier)]
    assert not loose, f"nobody has tried the oldest of {loose}"

@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    "An environment of its own with the wheel in it, which borrows everything else from this one."
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder/"env", with_pip=False)
    python = folder/"env"/("Scripts" if os.name == "nt" else "bin")/"python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((folder/"env").rglob("site-packages"))
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site/"borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python

def run(python: Path, *command: str) -> subprocess.CompletedProcess:
    "A command in the environment, away from the repository."
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=python.parents[1], env=environment, capture_output=True, text=True)

def test_installed_wheel_is_what_is_imported(installed):
    done = run(installed, str(installed), "-c", "import avmae; print(avmae.__file__)")
    assert done.returncode == 0 and Path(done.stdout.strip()).is_relative_to(installed.parents[1]), done.stdout + done.stderr

def test_installed_command_works(installed):
    done = run(installed, str(installed.parent/"avmae"), "recipes")
    assert done.returncode == 0 and "vggsound_pretrain" in done.stdout, done.stderr

def test_installed_wheel_trains_saves_loads_and_predicts(installed):
    avmae = str(installed.parent/"avmae")
    done = run(installed, avmae, "finetune", "smoke_finetune", "--run", "run", "--corpus.root", "clips", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    code = """
import avmae, glob
avmae.load("run", "cpu").save_pretrained("saved")
[clip] = avmae.load("saved", "cpu").predict(sorted(glob.glob("clips/**/*.mp4", recursive=True))[:1], progress=False)
print(clip.top(1)[0][0])
"""
    done = run(installed, str(installed), "-c", code)
    classes = {line.split(",")[2].strip('"') for line in (installed.parents[1]/"clips"/"vggsound.csv").read_text().splitlines()}
    assert done.returncode == 0 and done.stdout.strip() in classes, done.stdout + done.stderr
