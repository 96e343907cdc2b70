"""Try the wheel in an environment of its own, with the oldest versions that settings.ini admits or with the newest there are:
python .ci/versions.py oldest|newest. Minutes, and gigabytes from the package index."""
import os, shutil, subprocess, sys, tempfile, venv
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "hub", "download")
# What the library alone answers for; the other tests look at notebooks, results and the repository.
TESTS = ("augment", "board", "cli", "clips", "corpora", "hub", "manifest", "media", "mini", "model", "parallel", "parity", "prepare", "recipes", "scenic", "train")

def oldest() -> list[str]:
    "The lower bounds as pins."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    keys = ("requirements", *(f"{extra}_requirements" for extra in EXTRAS))
    return [stated.replace(">=", "==") for key in keys for stated in parser["DEFAULT"][key].split()]

def run(*command: str | Path, **how) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, **how)

def try_out(which: str, folder: Path) -> None:
    "Build, install and test in `folder`."
    run(sys.executable, "-m", "build", "--outdir", folder/"dist", ROOT)   # the wheel is built from the sdist
    venv.create(folder/"env", with_pip=True)
    python, wheel = folder/"env"/"bin"/"python", next((folder/"dist").glob("*.whl"))
    (folder/"oldest.txt").write_text("\n".join(oldest() if which == "oldest" else []))
    run(python, "-m", "pip", "install", "-q", "-c", folder/"oldest.txt", f"{wheel}[{','.join(EXTRAS)}]", "pytest")
    run(python, "-m", "pip", "list")
    shutil.copytree(ROOT/"tests", folder/"tests")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    run(python, "-m", "pytest", "-q", "-W", "ignore", *(f"tests/test_{name}.py" for name in TESTS), cwd=folder, env=environment)

if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]): sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder: try_out(sys.argv[1], Path(folder))
