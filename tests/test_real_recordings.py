"""The three experiment notebooks on real recordings: talking faces of the GRID corpus, skipped where it is not at hand."""
import json, os
from pathlib import Path
import papermill, pytest

ROOT = Path(__file__).parents[1]
GRID = Path(os.environ.get("AVMAE_GRID_DIR", ROOT.parent/"shared"/"corpora"/"grid"))
pytestmark = pytest.mark.skipif(not (GRID/"labels.csv").is_file(), reason="the GRID corpus is not here; AVMAE_GRID_DIR names its folder")
CORPUS = {"corpus.root": str(GRID), "corpus.format": "csv", "corpus.csv": "labels.csv", "corpus.path_column": "file", "corpus.label_column": "command",
          "cache": False, "steps": 4}

def execute(name: str, out: Path, **parameters) -> None:
    "One notebook of nbs/experiments, as a user would."
    papermill.execute_notebook(str(ROOT/"nbs"/"experiments"/f"{name}.ipynb"), str(out/f"{name}.ipynb"), parameters, kernel_name="python3",
                               progress_bar=False, cwd=str(out))

@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    "The records after pretraining, finetuning and evaluation of a few steps each."
    out = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        execute("pretrain", out, recipe="smoke_pretrain", run="pretrained", overrides=CORPUS)
        execute("finetune", out, recipe="smoke_finetune", run="finetuned", init_from="pretrained", overrides=CORPUS | {"model.num_classes": 4})
        execute("evaluate", out, runs=["finetuned"], windows=2)
    return {name: json.loads((out/name/"run.json").read_text()) for name in ("pretrained", "finetuned")}

def test_every_recording_is_read(runs):
    for record in runs.values():
        assert record["manifest"]["coverage"] == {"train": [750, 750], "val": [100, 100], "test": [150, 150]}
        assert record["manifest"]["failures"] == {} and record["skipped"] == 0

def test_finetuning_starts_from_the_pretrained_weights(runs):
    assert runs["finetuned"]["init_weights"] == runs["pretrained"]["weights"]

def test_all_test_clips_are_scored_with_the_windows_that_were_asked_for(runs):
    result = runs["finetuned"]["result"]
    assert (result["clips"], result["windows"]) == (150, 2) and result["top1"] <= result["top5"] == 1   # four classes
