"""Execute notebooks in place and store their outputs, cleaned: python .ci/execute.py [NOTEBOOK ...] (all of nbs/ by default)"""
import os, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean
from tqdm import tqdm

ROOT = Path(__file__).parents[1]

def execute(path: Path) -> None:
    "Run one notebook in its own folder; progress bars and warnings are noise in a book and are not stored."
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}   # a kernel adds its exact version
    nbformat.write(notebook, path)
    nbdev_clean(str(path))

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    found = [Path(name).resolve() for name in sys.argv[1:]] or sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    for path in (bar := tqdm(found, disable=len(found) == 1)):
        bar.set_description(path.stem)
        try: execute(path)
        except CellExecutionError as error: sys.exit(f"{path}: a cell failed and the notebook was left as it was.\n{error}")
