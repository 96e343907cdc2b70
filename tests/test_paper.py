"Run records, tables and figures: on made-up runs, and on the committed ones where there are any."
import csv, json, re
from pathlib import Path
import numpy as np
import pandas as pd
import papermill
import pytest
from avmae.paper.figures import Reconstruction, pixel_mask, reconstruction_figure, save_figure
from avmae.paper.published import RECORDS, SOURCES, comparison, published
from avmae.paper.runs import finetuned, flatten, load_records, read_run, read_runs, save_records
from avmae.paper.tables import Difference, Estimate, Table, estimate, paired_difference, provenance, summarise, write_table
from avmae.train.recipes import RECIPES

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(path.parent for path in (ROOT/"paper_figures").glob("*/runs.csv"))

def write_run(folder: Path, **changes) -> Path:
    "A made-up run record."
    record = {"kind": "finetune", "scale": "smoke", "corpus": "made up", "seed": 0, "modalities": ["video", "audio"], "init_from": None,
              "result": {"top1": .5}, "manifest": {"coverage": {"test": [19, 20]}}} | changes
    folder.mkdir(parents=True)
    (folder/"run.json").write_text(json.dumps(record))
    return folder

@pytest.fixture
def runs(tmp_path) -> list[Path]:
    "Eighteen made-up runs: two starts, three inputs, three seeds; the gain from pretraining is ten points for every seed."
    inputs = {"audio": ["audio"], "video": ["video"], "both": ["video", "audio"]}
    return [write_run(tmp_path/"runs"/f"{start}-{name}-{seed}", seed=seed, modalities=modalities, init_from=start or None,
                      result={"top1": .3 + .1 * bool(start) + .05 * k + .02 * seed**2})
            for start in ("", "pretrain") for k, (name, modalities) in enumerate(inputs.items()) for seed in range(3)]

def test_flatten_keeps_every_leaf():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": [1, 2], "e": None}

@pytest.mark.parametrize("text, says", [("{", "not a run record"), ('{"kind": "finetune"}', "has no scale, corpus, seed, result")])
def test_damaged_record_is_named(tmp_path, text, says):
    (tmp_path/"a").mkdir()
    (tmp_path/"a"/"run.json").write_text(text)
    with pytest.raises(ValueError, match=says) as error: read_run(tmp_path/"a")
    assert str(tmp_path/"a"/"run.json") in str(error.value)

def test_unfinished_run_is_named(runs):
    (runs[3]/"run.json").unlink()
    with pytest.raises(FileNotFoundError, match=runs[3].name): read_runs(runs)
    assert len(read_runs(runs[0].parent)) == 17

def test_records_round_trip(runs, tmp_path):
    records = read_runs(reversed(runs))
    again = load_records(save_records(records, tmp_path/"a.csv"))
    assert again["run"].tolist() == sorted(folder.name for folder in runs)
    for column in records: assert again[column].tolist() == records[column].tolist(), column
    assert finetuned(again)["start"].value_counts().to_dict() == {"scratch": 9, "pretrained": 9}

def test_text_that_looks_like_a_number_stays_text(tmp_path):
    records = pd.DataFrame({"run": ["a"], "git": ["12e4567"], "seconds": [1/3], "note": ['say "hi", 3']})
    again = load_records(save_records(records, tmp_path/"a.csv"))
    assert again.iloc[0].to_dict() == records.iloc[0].to_dict()

def test_estimate_is_the_sample_one():
    values = [.1, .4, .5, .55]
    assert estimate(values) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert estimate([.1]).std is None and estimate([.123]).text() == "12.3"

def test_pairs_are_matched_by_seed_not_by_order(runs):
    records = finetuned(read_runs(runs).sample(frac=1, random_state=0))
    video = records[records["inputs"] == "video"]
    difference = paired_difference(video, "start", "pretrained", "scratch")
    assert difference == pytest.approx((.1, 0, 3), abs=1e-12) and difference.text() == "+10.0 ± 0.0"
    with pytest.raises(ValueError, match="cannot be paired"): paired_difference(video[video["seed"] > 0].iloc[1:], "start", "pretrained", "scratch")

def test_scales_and_corpora_never_share_a_table(runs):
    records = finetuned(read_runs(runs))
    for column in ("scale", "corpus"):
        mixed = records.assign(**{column: ["published"] + ["mini"] * 17})
        with pytest.raises(ValueError, match=f"differ in {column}"):
            summarise(mixed, rows=("start", {"scratch": "s"}), columns=("inputs", {"audio": "a"}))

def test_table_files_hold_the_same_numbers(tmp_path):
    cells = pd.DataFrame([[Estimate(.5, .01, 3), Difference(-.2, None, 1)], [None, "x_y"]], index=["a", "b & c"], columns=["p", "q"], dtype=object)
    data, text, tex = write_table(Table(title="50 %", cells=cells, notes=("n.",)), tmp_path/"sub"/"t")
    assert [line["mean"] for line in csv.DictReader(data.open())] == ["0.5", "-0.2"]
    assert "| a | 50.0 ± 1.0 | -20.0 |" in text.read_text() and "| b & c |  | x_y |" in text.read_text()
    assert r"a & 50.0 $\pm$ 1.0 & -20.0 \\" in tex.read_text() and r"b \& c &  & x\_y \\" in tex.read_text()

def test_provenance_counts_what_was_lost(runs):
    records = finetuned(read_runs(runs))
    records.at[4, "manifest.coverage.test"] = [11, 20]
    assert provenance(records) == "Scale smoke, corpus made up, 18 runs, 11 of 20 test clips."

def execute(notebook: str, tmp_path: Path, **parameters) -> Path:
    "Run a notebook of nbs/paper as papermill would."
    executed = tmp_path/"executed.ipynb"
    papermill.execute_notebook(ROOT/"nbs"/"paper"/notebook, executed, parameters, cwd=ROOT/"nbs"/"paper", kernel_name="python3", progress_bar=False)
    return executed

def test_table_notebook_on_made_up_runs(runs, tmp_path):
    execute("table_pretraining.ipynb", tmp_path, runs=[str(folder) for folder in runs], out=str(tmp_path/"out"))
    assert sorted(path.name for path in (tmp_path/"out").iterdir()) == sorted(
        ["runs.csv"] + [f"table_{name}.{suffix}" for name in ("pretraining", "fusion") for suffix in ("csv", "md", "tex")])
    table = pd.read_csv(tmp_path/"out"/"table_pretraining.csv").set_index(["row", "column"])["mean"]
    assert table["pretrained", "audio + video"] == pytest.approx(.5 + .02 * 5 / 3)
    assert table["gain"].tolist() == pytest.approx([.1] * 3)
    fusion = pd.read_csv(tmp_path/"out"/"table_fusion.csv").set_index(["row", "column"])["mean"]
    assert fusion.tolist() == pytest.approx([.1, .05, .1, .05])

@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_tables_follow_from_committed_records(folder, tmp_path):
    execute("table_pretraining.ipynb", tmp_path, records=str(folder/"runs.csv"), out=str(tmp_path/"out"))
    for made in (tmp_path/"out").iterdir(): assert made.read_text() == (folder/made.name).read_text(), made.name

def test_pixel_mask_covers_each_patch():
    mask = np.random.default_rng(0).random(2 * 3 * 4) < .5
    pixels = pixel_mask(mask, (2, 3, 4), (2, 8, 4))
    assert pixels.shape == (4, 24, 16)
    blocks = pixels.reshape(2, 2, 3, 8, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(24, -1)
    assert (blocks == mask[:, None]).all()

def test_picture_shows_the_prediction_only_where_hidden():
    rng = np.random.default_rng(0)
    view = Reconstruction(original=rng.random((2, 4, 4, 3)), prediction=rng.random((2, 4, 4, 3)), hidden=rng.random((2, 4, 4)) < .5)
    assert (view.completed[view.hidden] == view.prediction[view.hidden]).all() and (view.completed[~view.hidden] == view.original[~view.hidden]).all()
    assert np.isnan(view.visible[view.hidden]).all() and (view.visible[~view.hidden] == view.original[~view.hidden]).all()

def test_figure_is_the_same_bytes_every_time(tmp_path):
    view = Reconstruction(original=np.eye(16), prediction=np.ones((16, 16)), hidden=np.tri(16) > 0)
    first, second = (save_figure(reconstruction_figure([{"audio": view}]), tmp_path/name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "clip-path" not in first[1].read_text()   # their names change from one process to the next
    assert re.search("completed", first[1].read_text())

def test_every_published_number_names_its_source():
    assert all(record.sources and len(record.source) > 20 for record in RECORDS)
    assert {key for record in RECORDS for key in record.sources} == set(SOURCES), "a source that nothing was read in"
    table = published()
    assert len(table) == len(RECORDS) > 100 and table["value"].between(5, 80).all()
    assert not table.duplicated(["method", "variant", "corpus", "train", "inputs", "metric", "value"]).any()

@pytest.mark.skipif(not (ROOT.parent/"shared"/"PAPER.md").is_file(), reason="the collection of sources is not part of the repository")
def test_published_numbers_are_marked_verified_where_they_were_collected():
    lines = (ROOT.parent/"shared"/"PAPER.md").read_text(encoding="utf-8").splitlines()
    sections = {"VGGSound": "### 4A", "AudioSet": "### 4B", "Epic-Kitchens-100": "### 4C"}
    names = {"Fayek and Kumar": "Fayek", "HTS-AT": "HTS-AT", "ViViT-L/16x2": "ViViT-L/16x2", "PlayItBack x3": "PlayItBack"}
    for corpus, start in sections.items():
        begin = next(k for k, line in enumerate(lines) if line.startswith(start))
        end = next(k for k, line in enumerate(lines[begin + 1:], begin + 1) if line.startswith("### "))
        verified = [line for line in lines[begin:end] if "[verified: " in line] + [line for line in lines if line.startswith("| AudioSet | AS-2M, audio only") and corpus == "AudioSet"]
        for record in (record for record in RECORDS if record.corpus == corpus):
            method = "audio only" if record.variant == "pretrained on the sound alone" else names.get(record.method, record.method.split("-")[0] if record.method == "CAST-B" else record.method)
            numbers = {float(number) for line in verified if method in line for number in re.findall(r"\d+(?:\.\d+)?", line)}
            assert record.value in numbers, record

@pytest.mark.parametrize("text, corpora", [
    *((function.__doc__, {"vggsound": "VGGSound", "audioset": "AudioSet", "epic": "Epic-Kitchens-100"}[name.split("_")[0]]) for name, function in RECIPES.items() if "Published" in function.__doc__),
    ((ROOT/"README.md").read_text(encoding="utf-8"), "VGGSound")])
def test_quoted_scores_are_published_ones(text, corpora):
    quoted = re.findall(r"(?:Published|reports) [^\n]*", text)
    numbers = [float(number) for line in quoted for number in re.findall(r"\b\d\d\.\d\b", line)]
    assert numbers and set(numbers) <= set(published(corpora, method="AV-MAE")["value"]), quoted

def test_a_missing_published_number_is_an_empty_cell():
    cells = comparison("VGGSound").cells
    assert cells.loc["MAViL", ["audio", "video"]].tolist() == [None, None] and cells.loc["MAViL", "audio + video"] == "67.1"
    with pytest.raises(ValueError, match="known are AudioSet"): published("Kinetics")
