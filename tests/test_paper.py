"Run records, tables and figures: on made-up runs, and on the committed ones where there are any."
import csv, dataclasses, hashlib, json, re, shutil, wave
from pathlib import Path
import matplotlib
import matplotlib.text
import numpy as np
import pandas as pd
import papermill
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from avmae.data.media import Media
from avmae.model.avmae import AVMAEConfig
from avmae.model.decoders import DECODERS
from avmae.model.encoders import ENCODERS
from avmae.paper.claims import CLAIMS, Finding, claims_table, claims_text, examine, examine_all, interval, main_pretraining, student_t, summary, with_pretraining
from avmae.paper.diagrams import decoders_figure, encoders_figure, hidden_patches, kept, objectives_figure, overview_figure
from avmae.paper.figures import Reconstruction, pixel_mask, reconstruction_figure, save_figure
from avmae.paper.index import index, write_index
from avmae.paper.published import RECORDS, SOURCES, comparison, published
from avmae.paper.runs import INPUTS, finetuned, flatten, load_records, read_run, read_runs, save_records
from avmae.paper.tables import Difference, Estimate, Table, estimate, paired_difference, provenance, summarise, write_table
from avmae.train.grid import SCALES, jobs
from avmae.train.recipes import RECIPES
from avmae.train.record import config_hash

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(path.parent for path in (ROOT/"paper_figures").glob("*/runs.csv"))
NOTEBOOKS = ROOT/"nbs"/"paper"

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
        ["reproduce.csv"] + [f"table_{name}.{suffix}" for name in ("pretraining", "fusion") for suffix in ("csv", "md", "tex")])
    table = pd.read_csv(tmp_path/"out"/"table_pretraining.csv").set_index(["row", "column"])["mean"]
    assert table["pretrained", "audio + video"] == pytest.approx(.5 + .02 * 5 / 3)
    assert table["gain"].tolist() == pytest.approx([.1] * 3)
    fusion = pd.read_csv(tmp_path/"out"/"table_fusion.csv").set_index(["row", "column"])["mean"]
    assert fusion.tolist() == pytest.approx([.1, .05, .1, .05])

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

@pytest.mark.parametrize("freedom, t", [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)])
def test_quantile_is_that_of_the_printed_tables(freedom, t):
    assert student_t(freedom) == pytest.approx(t, abs=2e-5)

def test_interval_covers_the_truth_as_often_as_it_says():
    drawn = np.random.default_rng(1).normal(0, 1, (2000, 3))
    assert np.mean([low < 0 < high for low, high in map(interval, drawn)]) == pytest.approx(.95, abs=.02)

def pretraining(name: str, **changes) -> dict:
    return {"run": name, "kind": "pretrain", "scale": "smoke", "corpus": "vggsound", "seed": 0, "modalities": ["video", "audio"], "weights": name * 2, "result.test_loss": .1,
            "config.epochs": 4, "config.model.encoder": "mid_fusion", "config.model.decoder": "shared", "config.model.objective": "reconstruction", "config.model.mask_ratio.video": .9,
            "config.model.mask_ratio.audio": .5} | changes

def finetuning(source: str, seed: int, top1: float, **changes) -> dict:
    return {"run": f"{source}-{seed}-{'-'.join(map(str, changes.values()))}", "kind": "finetune", "scale": "smoke", "corpus": "vggsound", "seed": seed, "modalities": ["video", "audio"],
            "init_from": source and f"somewhere/{source}", "init_weights": source * 2 or None, "config.model.size": "nano", "result.top1": top1, "result.clips": 200} | changes

def grid(seeds: int = 3, gain: float = .1) -> pd.DataFrame:
    "Main and inpainting pretraining, and none."
    noise = lambda seed, k: .005 * ((seed * 3 + k) % 4)
    tests = [finetuning(source, seed, .3 + more + noise(seed, k)) for k, (source, more) in enumerate({"": 0, "main": gain, "other": gain - .02}.items()) for seed in range(seeds)]
    return pd.DataFrame([pretraining("main"), pretraining("other", **{"config.model.objective": "inpainting"}), *tests], dtype=object)

PAYS = next(claim for claim in CLAIMS if claim.text == "Audiovisual pretraining against none, finetuned on audio + video" and claim.among["corpus"] == "vggsound")

def test_a_finetuning_run_knows_its_pretraining_by_its_weights():
    runs = with_pretraining(grid().sample(frac=1, random_state=0))
    assert runs.set_index("run")["source_run"].to_dict() == {f"{source}-{seed}-": source or None for source in ("", "main", "other") for seed in range(3)}
    assert set(runs[runs["source_run"] == "other"]["objective"]) == {"inpainting"} and set(runs[runs["source"] == "none"]["objective"]) == {None}
    lost = with_pretraining(grid().query("run != 'main'"))   # the run that left the weights is not among the records
    assert set(lost[lost["run"].str.startswith("main")]["source"]) == {"unknown"}

@pytest.mark.parametrize("missing", ["main-0-", "main-1-", "other-2-", "-0-"])
def test_the_main_pretraining_does_not_depend_on_one_run(missing):
    records = grid()
    assert main_pretraining(with_pretraining(records[records["run"] != missing])) == main_pretraining(with_pretraining(records))

def test_a_claim_compares_runs_that_differ_in_nothing_else():
    runs = with_pretraining(grid())
    assert main_pretraining(runs)["vggsound"]["objective"] == "reconstruction"
    finding = examine(PAYS, runs)
    expected = [runs.set_index("run").at[f"main-{seed}-", "result.top1"] - runs.set_index("run").at[f"-{seed}-", "result.top1"] for seed in range(3)]
    assert finding.differences == pytest.approx(expected) and finding.pretrainings == 1
    scrambled = examine(PAYS, runs.sample(frac=1, random_state=2))
    assert scrambled.differences == finding.differences

def test_a_run_without_a_partner_is_counted_and_two_of_one_seed_are_refused():
    records = grid()
    finding = examine(PAYS, with_pretraining(records[records["run"] != "main-1-"]))
    assert (len(finding.differences), finding.unpaired) == (2, 1) and "1 more without a partner" in finding.sentence
    again = pd.concat([records, pd.DataFrame([finetuning("main", 0, .9, lr=1)], dtype=object)])
    with pytest.raises(ValueError, match="main-0- and main-0-1 have the same seed"): examine(PAYS, with_pretraining(again))

def test_an_unscored_run_is_named():
    records = grid()
    records.at[6, "result.top1"] = None
    with pytest.raises(ValueError, match=f"{records.at[6, 'run']} has no result.top1"): examine(PAYS, with_pretraining(records))

@pytest.mark.parametrize("differences, verdict", [
    ((), "not run"), ((.3,), "undecided at this scale"), ((-.3,), "undecided at this scale"),   # nothing, one
    ((.10, .11), "seen"), ((.10, .13), "undecided at this scale"), ((-.10, -.11), "the opposite"),    # two: 12.7 times the error
    ((.05, .05), "seen"), ((0., 0.), "not seen"), ((0., 0., 0.), "not seen"), ((-.05,) * 3, "the opposite"),   # ties
    ((.01, .02, .03), "undecided at this scale"), ((.02, .022, .024), "seen"), ((.001, .0012, .0014), "seen"),
    ((-.002, 0., .002), "not seen"), ((-.03, 0., .03), "undecided at this scale"), ((-.08, -.04, -.03), "undecided at this scale")])
def test_verdicts(differences, verdict):
    finding = Finding(claim=PAYS, differences=differences)
    assert finding.verdict == verdict and verdict in finding.sentence

def test_ties_of_rounded_scores_are_as_wide_as_the_rounding():
    sharp, rounded = Finding(claim=PAYS, differences=(.01, .01)), Finding(claim=PAYS, differences=(.01, .01), step=1/100)
    assert sharp.verdict == "seen" and rounded.verdict == "undecided at this scale"
    assert rounded.interval == pytest.approx((.01 - 12.7062 * .01 / 12**.5, .01 + 12.7062 * .01 / 12**.5), abs=1e-6)

def test_claims_that_were_not_run_are_listed():
    findings = examine_all(with_pretraining(grid()))
    table = claims_table(findings)
    assert len(table.cells) == len(CLAIMS) - 1   # the only pretraining is the headline and what is compared
    assert set(table.cells["verdict"]) == {"seen", "undecided at this scale", "not run"}
    assert summary(findings)["What was learned transfers to another corpus"] == "not run" and summary(findings)["Audiovisual pretraining helps"] == "seen in 1 of 1 comparison"
    assert claims_text(findings).count(": not run") == sum(not finding.differences for finding in findings) + list(summary(findings).values()).count("not run")
    nothing = examine_all(with_pretraining(grid().head(2)))
    assert len(nothing) == len(CLAIMS) and {finding.verdict for finding in nothing} == {"not run"}

def test_the_headline_pretraining_is_a_comparison_of_its_own_where_there_is_another():
    short = [pretraining(f"short-seed{seed}", **{"config.epochs": 2}) for seed in range(3)]
    records = pd.concat([grid(), pd.DataFrame([*short, *(finetuning(f"short-seed{seed}", seed, .31 + .001 * seed) for seed in range(3))], dtype=object)])
    told = {finding.claim.text: finding for finding in examine_all(with_pretraining(records)) if finding.differences}
    usual, headline = told["Audiovisual pretraining against none, finetuned on audio + video"], told["The headline pretraining against none, finetuned on audio + video"]
    assert usual.runs[0].split()[0].startswith("short-seed0") and headline.runs[0].split()[0].startswith("main") and usual.runs[1] == headline.runs[1]
    csv = claims_table(list(told.values())).tidy().set_index("comparison")
    assert csv.loc[headline.claim.text, ["runs", "compared with"]].tolist() == list(headline.runs)

def test_claims_across_corpora_use_the_score_and_the_main_pretraining_of_each():
    epic = [finetuning(source, seed, .2 + .1 * bool(source) + .001 * seed, corpus="epic_kitchens") for source in ("", "sounds") for seed in range(3)]
    records = pd.concat([grid(), pd.DataFrame([pretraining("sounds", corpus="audioset", **{"config.model.mask_ratio.audio": .7}), *epic], dtype=object)])
    runs = with_pretraining(records)
    assert {corpus: main["mask_audio"] for corpus, main in main_pretraining(runs).items()} == {"vggsound": .5, "audioset": .7}
    verdicts = {(claim.text, claim.among["corpus"]): examine(claim, runs).verdict for claim in CLAIMS if "transfers" in claim.claim}
    assert verdicts["Pretraining on AudioSet against none", "epic_kitchens"] == "seen" and list(verdicts.values()).count("not run") == 3
    assert {claim.score for claim in CLAIMS if claim.among["corpus"] == "audioset"} == {"result.mAP"}

def grid_records(folder: Path, runs: pd.DataFrame) -> Path:
    "The records as a committed csv."
    return save_records(runs.assign(**{"manifest.coverage.test": [[200, 200]] * len(runs)}), folder/"runs.csv")

def test_sota_tables_keep_ours_and_published_apart(tmp_path, monkeypatch):
    epic = [finetuning("main", seed, .2 + .01 * seed, corpus="epic_kitchens") | {"result.top1_verb": .5, "result.top1_noun": .4} for seed in range(2)]
    records = pd.concat([grid(), pd.DataFrame(epic, dtype=object)], ignore_index=True)
    run_cells("table_sota.ipynb", monkeypatch, records=str(grid_records(tmp_path, records)), out=str(tmp_path/"out"))
    assert {path.stem for path in (tmp_path/"out").iterdir()} == {f"table_{kind}_{corpus}" for kind in ("sota", "ours") for corpus in ("vggsound", "audioset", "epic_kitchens")}
    ours = pd.read_csv(tmp_path/"out"/"table_ours_vggsound.csv").set_index(["row", "column"])
    expected = with_pretraining(grid()).query("source_run == 'main'")["result.top1"].astype(float)
    assert len(ours) == 2 and ours.loc[("pretrained on VGGSound", "audio + video"), "mean"] == pytest.approx(expected.mean())   # the inpainting run is not the main one
    heads = pd.read_csv(tmp_path/"out"/"table_ours_epic_kitchens.csv").set_index(["row", "column"])["mean"]
    assert heads["pretrained on VGGSound, audio + video"].to_dict() == pytest.approx({"verb top-1": .5, "noun top-1": .4, "action top-1": .205})
    assert "not run" in (tmp_path/"out"/"table_ours_audioset.md").read_text(encoding="utf-8") and len(pd.read_csv(tmp_path/"out"/"table_ours_audioset.csv")) == 0
    for path in (tmp_path/"out").glob("table_sota_*.md"):
        assert "±" not in path.read_text(encoding="utf-8") and "Sources: [1]" in path.read_text(encoding="utf-8")
    quoted = pd.read_csv(tmp_path/"out"/"table_sota_vggsound.csv").set_index("method")
    assert quoted.loc["AV-MAE", ["audio", "video", "audio + video"]].tolist() == [57.2, 50.3, 65.0] and np.isnan(quoted.loc["MAViL", "audio"])

def test_hyperparameters_are_those_of_the_recipes(tmp_path, monkeypatch):
    changed = grid().assign(recipe="smoke_pretrain", **{"config.optim.lr": .5, "config.epochs": 2})
    run_cells("table_hyperparameters.ipynb", monkeypatch, records=str(grid_records(tmp_path, changed)), out=str(tmp_path/"out"))
    tables = {kind: pd.read_csv(tmp_path/"out"/f"table_hyperparameters_{kind}ing.csv", index_col=0, dtype=str) for kind in ("pretrain", "finetun")}
    text = {kind: (tmp_path/"out"/f"table_hyperparameters_{kind}ing.md").read_text(encoding="utf-8") for kind in tables}
    for name, function in RECIPES.items():
        recipe, kind = function(), "pretrain" if function().kind == "pretrain" else "finetun"
        if name not in tables[kind]: assert f"{name}: as " in text[kind]; continue
        column = tables[kind][name]
        assert float(column["peak learning rate"]) == recipe.optim.lr and int(column["batch"]) == recipe.batch_size and column["encoder size"].startswith(f"{recipe.model.stack_size.layers} layer")
        assert column["scale"] == recipe.scale and column["epochs"] == str(recipe.epochs)
    assert tables["pretrain"].loc["hidden, audio", "audioset_pretrain"] == "70 %" and tables["finetun"].loc["tokens, audio", "audioset_finetune"] == "496"
    fields = pd.read_csv(tmp_path/"out"/"table_hyperparameters_changed.csv").set_index("field")
    assert "epochs" not in fields.index and fields.loc["optim.lr", ["recipe says", "runs had"]].tolist() == ["0.001", "0.5"]

GRIDS = {"large": {"video": (8, 14, 14), "audio": (62, 8)}, "mini": {"video": (4, 4, 4), "audio": (10, 4)}}
DRAWN = {"large": AVMAEConfig(size="large", fusion_layers=2, mask_ratio={"video": .9, "audio": .7}), "mini": AVMAEConfig(size="mini", fusion_layers=1, mask_ratio={"video": .6, "audio": .6})}

def diagrams(size: str) -> dict:
    config, tokens = DRAWN[size], {m: int(np.prod(grid)) for m, grid in GRIDS[size].items()}
    vary = lambda **choice: dataclasses.replace(config, **choice)
    return {"overview": overview_figure(config, GRIDS[size]), "encoders": encoders_figure([vary(encoder=one) for one in ENCODERS], tokens), "decoders": decoders_figure([vary(decoder=one) for one in DECODERS], tokens),
            "objectives": objectives_figure([vary(objective=one) for one in ("reconstruction", "inpainting")], tokens)}

def words(figure) -> list:
    return [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]

def test_diagrams_say_what_the_config_says():
    assert kept(DRAWN["large"], {"video": 1568, "audio": 496}) == {"video": 157, "audio": 149}   # as the recipe says
    told = {name: [text.get_text() for text in words(figure)] for name, figure in diagrams("large").items()}
    assert told["encoders"].count("24 layers") == 1 + 2 + 2 and told["encoders"].count("22 layers") == 2 and "2\nlayers" in told["encoders"] and "sound: 149" in told["encoders"]
    assert told["decoders"].count("4 layers") == 2 + 2 + 1 and "video: 157 of 1,568" in told["decoders"] and "× 1,536" in told["decoders"]
    assert {"loss on 1,411", "149 + 1,419 masked", "157 + 339 masked", "loss on 339"} <= set(told["objectives"])
    assert "hidden: 90 % of the video,\n70 % of the sound" in told["overview"]
    assert hidden_patches((8, 14, 14), .9, 0).sum() == 1411

@pytest.mark.parametrize("size", GRIDS)
def test_words_of_the_diagrams_neither_overlap_nor_leave_the_page(size):
    for name, figure in diagrams(size).items():
        renderer = FigureCanvasAgg(figure).get_renderer()
        drawn = [patch.get_window_extent(renderer) for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_width() > .1]
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in words(figure)]
        for k, (text, box) in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{name}: {text!r} is cut off"
            assert not (hit := [other for other, there in boxes[k + 1:] if box.overlaps(there)]), f"{name}: {text!r} overlaps {hit}"
            for edge in drawn: assert not box.overlaps(edge) or edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1, f"{name}: {text!r} crosses the edge of a box"

def test_diagrams_are_the_same_bytes_every_time(tmp_path):
    for name, figure in diagrams("mini").items():
        first, second = save_figure(figure, tmp_path/"a"/name), save_figure(diagrams("mini")[name], tmp_path/"b"/name)
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second] and "clip-path" not in first[1].read_text(encoding="utf-8"), name

def test_overview_is_of_two_modalities_that_are_reconstructed():
    for changes, says in [({"modalities": ("audio",), "encoder": "shared"}, "video and sound together"), ({"objective": "inpainting"}, "not of inpainting")]:
        with pytest.raises(ValueError, match=says): overview_figure(dataclasses.replace(DRAWN["mini"], **changes), GRIDS["mini"])

@pytest.mark.parametrize("recipe", ["smoke_pretrain", "vggsound_pretrain"])
def test_strategies_notebook_draws_any_recipe(recipe, tmp_path, monkeypatch):
    run_cells("figure_strategies.ipynb", monkeypatch, recipe=recipe, out=str(tmp_path/"out"))
    assert {path.name for path in (tmp_path/"out").iterdir()} == {f"figure_{name}.{suffix}" for name in ("overview", "encoders", "decoders", "objectives") for suffix in ("png", "svg")}

def links(page: str) -> list[str]:
    return re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)\)", page)

@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_index_lists_every_file_and_its_links_lead_somewhere(folder, tmp_path):
    copy = tmp_path/"a"/"b"/folder.name   # as deep as paper_figures/mini lies, with the notebooks beside
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("index.md"))
    shutil.copytree(ROOT/"nbs"/"paper", tmp_path/"a"/"nbs"/"paper")
    page = write_index(copy, tmp_path/"a"/"nbs"/"paper").read_text(encoding="utf-8")
    assert page == write_index(copy, tmp_path/"a"/"nbs"/"paper").read_text(encoding="utf-8"), "the page is not the same twice"
    named = links(page)
    assert named and not [link for link in named if not (copy/link).exists()]
    assert {path.name for path in copy.iterdir()} - {"index.md"} == {link for link in named if "/" not in link}
    for path in copy.glob("table_*.md"): assert f"]({path.name})" in page and re.search(rf"{path.stem}\.tex\)\), made by", page)
    for run in load_records(copy/"runs.csv").to_dict("records"):
        row, = [line for line in page.splitlines() if line.startswith(f"| {run['run']} |")]
        assert all(str(value) in row for value in (run["recipe"], run["config_hash"], run["manifest.hash"], run["git"][:10], run["hardware"], f"{run['seconds']:,.0f}"))
        split = run["config.corpus.test_split"]
        assert f"of {run[f'manifest.coverage.{split}'][1]:,} {split}" in row

def test_index_does_not_depend_on_the_order_of_files_and_copes_with_few(tmp_path):
    names = ["table_b.md", "table_a.md", "figure_c.png", "figure_c.svg", "clip.mp4", "claims.md"]
    for order in (names, names[::-1]):
        folder = tmp_path/order[0]/"tiny"
        folder.mkdir(parents=True)
        for name in order: (folder/name).write_text("**A title**\n" if name.endswith("md") else "")
    one, two = (index(tmp_path/name/"tiny") for name in (names[0], names[-1]))
    assert one == two and one.index("table_a.md") < one.index("table_b.md") < one.index("figure_c.png") < one.index("claims.md") < one.index("clip.mp4")
    assert "## Runs" not in one and one.startswith("# Results at scale tiny\n")
    with pytest.raises(FileNotFoundError, match="does not exist"): index(tmp_path/"nowhere")

def run_cells(notebook: str, monkeypatch, **parameters) -> dict:
    "The names that a notebook of nbs/paper leaves behind, run with these parameters in this process: many times quicker than a kernel."
    monkeypatch.chdir(NOTEBOOKS)
    names = {"__name__": "notebook"}
    for cell in json.loads((NOTEBOOKS/notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code": exec(compile("".join(cell["source"]).replace("%matplotlib inline", ""), notebook, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(names), f"{notebook} has not these parameters"
            names |= parameters
    return names

def digest(value) -> str: return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

CLIPS = {"vggsound": (172_427, 15_446), "audioset": (1_857_210, 18_000), "epic_kitchens": (67_217, 9_668)}   # of the real corpora, about
GAINS = {"mid_fusion": .03, "early_fusion": .02, "separate": .01, "shared": 0.}, {"shared": .01, "joint": .005, "separate": 0.}

def expected(model: dict, size: str, inputs: int, source: dict | None) -> float:
    "The made-up law of scores: `source` is the record of the pretraining."
    level = .3 + {1: 0., 2: .1}[inputs] + {"nano": 0., "mini": .02, "tiny": .03, "base": .04, "large": .05}[size]
    if source is None: return level
    c = source["config"]["model"]
    passes = source["steps"] * source["config"]["batch_size"] / source["manifest"]["trained_on"]
    level += .05 + .02 * np.log2(1 + passes) - sum(.1 * abs(c["mask_ratio"][m] - .6) for m in c["modalities"])
    if len(c["modalities"]) == 1: return level - .06
    return level + GAINS[0][c["encoder"]] + GAINS[1][c["decoder"]] - .04 * (c["objective"] == "inpainting") - .03 * (source["corpus"] != model["corpus"])

def made_up_grid(scale: str) -> list[dict]:
    "A record for every run of the grid of a scale, as the engine writes them, with results from `expected` and a little chance."
    rng, records = np.random.default_rng(7), {}
    for job in jobs(scale):
        for run, recipe in job.recipes().items():
            config, source = json.loads(json.dumps(recipe.to_dict())), records.get(job.init_from)
            train, test = SCALES[scale].clips or CLIPS[job.corpus]
            steps = recipe.steps or recipe.epochs * (train // recipe.batch_size)
            score = expected({"corpus": job.corpus}, config["model"]["size"], len(config["model"]["modalities"]), source) + .002 * rng.standard_normal()
            result = {"pretrain": {"test_loss": .1}, "finetune": {"mAP": score} if job.corpus == "audioset" else {"top1": score} | ({"top1_verb": score + .1, "top1_noun": score + .05} if job.corpus == "epic_kitchens" else {})}[job.kind]
            same = {**config, "epochs": None, "steps": steps, "name": None}   # what is computed, however it was asked for
            records[run] = {"name": run, "kind": job.kind, "recipe": recipe.name, "scale": scale, "corpus": job.corpus, "seed": recipe.seed, "modalities": config["model"]["modalities"],
                            "init_from": f"runs/{scale}/{job.init_from}" if job.init_from else None, "init_weights": source and source["weights"], "weights": digest([same, source and source["weights"]]),
                            "result": result | {"clips": test}, "config_hash": config_hash(config), "steps": steps, "seconds": 60. + len(run), "clips_per_second": 100., "hardware": "a made-up machine", "git": "0123456789abcdef",
                            "parameters": {"nano": 10**5, "mini": 10**6, "tiny": 5 * 10**6, "base": 10**8, "large": 3 * 10**8}[config["model"]["size"]], "processes": 1, "threads": 1, "skipped": 0, "peak_memory": 10**9,
                            "manifest": {"hash": digest(job.corpus)[:16], "trained_on": train, "coverage": {config["corpus"]["test_split"]: [test, test], "train": [train, train]}, "failures": {}}, "config": config}
    return list(records.values())

@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> dict[str, Path]:
    "The folder of made-up records of each scale: runs.csv."
    folders = {scale: tmp_path_factory.mktemp("grid")/scale for scale in ("smoke", "mini", "paper")}
    for scale, folder in folders.items():
        save_records(pd.DataFrame([{"run": record["name"], **flatten(record)} for record in made_up_grid(scale)], dtype=object), folder/"runs.csv")
    return folders

FROM_RECORDS = ("table_strategies", "table_objectives", "table_modalities", "table_masking", "table_size", "table_length", "table_transfer", "table_claims", "table_sota", "table_runs", "figure_epochs", "figure_masking")
TABLES = {"table_strategies": 33, "table_objectives": 6, "table_modalities": 8, "table_modalities_audioset": 8, "table_size": 6, "table_length": 15, "table_transfer": 15}   # numbers in each, where the grid has two other lengths
SCORE = {"AudioSet, mAP": "result.mAP", "noun": "result.top1_noun", "Epic-Kitchens-100, verb": "result.top1_verb"}   # of columns; else top-1

def make(records: Path, out: Path, monkeypatch, notebooks=FROM_RECORDS, **parameters) -> dict[str, dict]:
    "What notebooks leave behind, by name; their files are in `out`."
    return {name: run_cells(f"{name}.ipynb", monkeypatch, records=str(records), out=str(out), **parameters) for name in notebooks}

@pytest.fixture(scope="module")
def made(grids, tmp_path_factory) -> dict[str, Path]:
    "All tables and figures of the made-up records of each scale."
    folders = {scale: tmp_path_factory.mktemp("made")/scale for scale in grids}
    with pytest.MonkeyPatch.context() as patch:
        for scale, out in folders.items(): make(grids[scale]/"runs.csv", out, patch)
    return folders

def cells_of(folder: Path, name: str) -> list[dict]:
    return pd.read_csv(folder/f"{name}.csv", dtype={"row": str}).query("column != 'gain'").to_dict("records")

@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_a_number_of_a_table_is_the_mean_of_the_runs_that_it_names(scale, made, grids):
    runs, seeds = load_records(grids[scale]/"runs.csv").set_index("run"), SCALES[scale].seeds
    for name in [*TABLES, "table_masking"]:
        cells = cells_of(made[scale], name)
        if name in TABLES and scale == "mini" and len(SCALES[scale].epochs) == 3: assert len(pd.read_csv(made[scale]/f"{name}.csv")) == TABLES[name], name
        assert cells, name
        for cell in cells:
            behind = runs.loc[cell["runs"].split(), SCORE.get(cell["column"], "result.mAP" if name.endswith("audioset") else "result.top1")].astype(float)
            assert len(behind) == cell["n"] == seeds and cell["mean"] == pytest.approx(behind.mean()), (name, cell)
            assert np.isnan(cell["std"]) if seeds == 1 else cell["std"] == pytest.approx(behind.std()), (name, cell)
        text = (made[scale]/f"{name}.md").read_text(encoding="utf-8")
        assert f"cale {scale}" in text and ("are generated" in text) == (scale != "paper") and ("±" in text) == (seeds > 1), name

def names(cell: dict) -> set[str]:
    "The runs of a cell without their seeds."
    return {name.rpartition("-seed")[0] for name in cell["runs"].split()}

WORDS = {words: one for one, words in INPUTS.items()}

@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_a_cell_holds_the_runs_that_its_row_and_column_say(scale, made):
    fusions = {"early fusion": "early_fusion", "mid fusion": "mid_fusion"}
    for cell in cells_of(made[scale], "table_strategies"):
        encoder, decoder = cell["row"].split(", ")
        assert names(cell) == {f"{fusions.get(encoder, encoder)}-{decoder}-{WORDS[cell['column']]}"}
    for cell in cells_of(made[scale], "table_objectives"):
        assert names(cell) == {f"{'inpainting' if cell['row'] == 'inpainting' else 'mid_fusion-shared'}-{WORDS[cell['column']]}"}
    sources = {"from scratch": "scratch_compared" if SCALES[scale].compared_classifier else "scratch", "pretrained on audio": "only_audio", "pretrained on video": "only_video", "pretrained on audio + video": "mid_fusion-shared"}
    for cell in cells_of(made[scale], "table_modalities"): assert names(cell) == {f"{sources[cell['row']]}-{WORDS[cell['column']]}"}
    sources |= {"from scratch": "scratch", "pretrained on audio": "audioset_only_audio", "pretrained on video": "audioset_only_video", "pretrained on audio + video": "audioset"}
    for cell in cells_of(made[scale], "table_modalities_audioset"): assert names(cell) == {f"{sources[cell['row']]}-audioset-{WORDS[cell['column']]}"}
    starts = {"from scratch": "scratch", "VGGSound": "pretrained", "AudioSet": "audioset"}
    for cell in cells_of(made[scale], "table_transfer"):
        corpus = "" if cell["column"].startswith("VGG") else "-audioset" if cell["column"].startswith("Audio") else "-epic_kitchens"
        start = starts[cell["row"]]
        assert names(cell) <= {f"{start}{corpus}-audiovisual", *(f"scratch_{size}-audiovisual" for size in SCALES[scale].sizes if start == "scratch")}

def test_masks_lengths_and_sizes_are_those_of_the_runs(made, grids):
    runs = load_records(grids["mini"]/"runs.csv").set_index("run")
    for cell in cells_of(made["mini"], "table_masking"):
        source, = {Path(name).name.rpartition("-seed")[0] for name in runs.loc[cell["runs"].split(), "init_from"]}
        m = {"of the video": "video", "of the sound": "audio"}[cell["column"]]
        shares = {one: runs.loc[f"{source}-seed0", f"config.model.mask_ratio.{one}"] for one in ("video", "audio")}
        assert f"{100 * shares[m]:g} %" == cell["row"] and shares["audio" if m == "video" else "video"] == .6
    assert {cell["row"] for cell in cells_of(made["mini"], "table_length")} == {"0, from scratch", *(str(runs.loc[name, "config.epochs"]) for name in runs.index if name.startswith("epochs_") and runs.loc[name, "kind"] == "pretrain"),
                                                                               str(runs.loc["mid_fusion-shared-seed0", "config.epochs"])}
    for cell in cells_of(made["mini"], "table_size"): assert set(runs.loc[cell["runs"].split(), "config.model.size"]) == {cell["row"].split(",")[0]}
    gains = pd.read_csv(made["mini"]/"table_size.csv").query("column == 'gain'")["mean"]
    assert len(gains) == 2 and gains.between(.1, .3).all()

def test_claims_of_a_grid_with_known_effects(made, grids):
    verdicts = pd.read_csv(made["mini"]/"table_claims.csv", keep_default_na=False)
    slight = verdicts["comparison"].isin(["A shared decoder against separate decoders", "A shared decoder against a joint decoder"])   # a point apart or less
    assert set(verdicts[~slight]["verdict"]) == {"seen"} and set(verdicts["pairs"]) == {3}
    gains = verdicts.set_index("comparison")["gain"]
    assert gains[["Mid fusion against early fusion", "Mid fusion against a shared encoder", "Mid fusion against separate encoders", "Reconstruction against inpainting"]].tolist() == pytest.approx([1, 3, 2, 4], abs=.6)
    assert set(pd.read_csv(made["smoke"]/"table_claims.csv", keep_default_na=False)["verdict"]) == {"undecided at this scale"}   # one seed
    runs = with_pretraining(load_records(grids["mini"]/"runs.csv"))
    joint = next(claim for claim in CLAIMS if claim.headline and claim.among["corpus"] == "vggsound")
    assert examine(joint, runs).pretrainings == 1 and examine(PAYS, runs).pretrainings == 3   # the headline one has no seeds, the compared ones do

def test_curves_go_through_the_means(grids, monkeypatch, tmp_path):
    found = make(grids["mini"]/"runs.csv", tmp_path, monkeypatch, ["figure_epochs", "table_length", "figure_masking"])
    table = found["table_length"]["table"].cells
    drawn = {text.get_text(): text for text in found["figure_epochs"]["figure"].axes[0].texts}
    assert set(drawn) == set(INPUTS.values())
    heights = {line.get_color(): line.get_ydata() for line in found["figure_epochs"]["figure"].axes[0].lines if len(line.get_ydata()) == len(table) and line.get_linestyle() == "-"}
    for words, text in drawn.items(): assert list(heights[text.get_color()]) == pytest.approx([100 * cell.mean for cell in table[words]])
    assert [len(axis.texts) for axis in found["figure_masking"]["figure"].axes] == [1, 1]
    for stem in ("figure_epochs", "figure_masking"): assert b"clip-path" not in (tmp_path/f"{stem}.svg").read_bytes()

@pytest.mark.parametrize("name", ["figure_epochs", "figure_masking"])
@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_words_of_the_curves_neither_overlap_nor_leave_the_page(name, scale, grids, monkeypatch, tmp_path):
    figure = make(grids[scale]/"runs.csv", tmp_path, monkeypatch, [name])[name]["figure"]
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    beyond = {id(tick.label1) for axis in figure.axes for tick in axis.yaxis.get_major_ticks() if not axis.get_ylim()[0] <= tick.get_loc() <= axis.get_ylim()[1]}   # these are not drawn
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in words(figure) if id(text) not in beyond]
    for k, (text, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{text!r} is cut off"
        assert not (hit := [other for other, there in boxes[k + 1:] if box.overlaps(there)]), f"{text!r} overlaps {hit}"

def test_records_without_a_finetuning_run(grids, tmp_path, monkeypatch):
    alone = load_records(grids["smoke"]/"runs.csv").query("kind == 'pretrain'").reset_index(drop=True)
    assert len(finetuned(alone)) == 0
    make(save_records(alone, tmp_path/"runs.csv"), tmp_path/"out", monkeypatch)
    assert "not run" in (tmp_path/"out"/"table_strategies.md").read_text(encoding="utf-8") and len(pd.read_csv(tmp_path/"out"/"table_transfer.csv")) == 0

def test_runs_are_gathered_into_one_file(runs, tmp_path, monkeypatch):
    for folder in runs:
        record = json.loads((folder/"run.json").read_text())
        (folder/"run.json").write_text(json.dumps(record | {"seconds": 90., "clips_per_second": 10., "processes": 1, "hardware": "here", "git": "0123456789ab+"}))
    run_cells("table_runs.ipynb", monkeypatch, runs=[str(folder) for folder in runs], out=str(tmp_path/"out"))
    assert load_records(tmp_path/"out"/"runs.csv")["run"].tolist() == sorted(folder.name for folder in runs)
    table = pd.read_csv(tmp_path/"out"/"table_runs.csv", index_col=0)
    assert table.loc["all", "minutes, all"] == 27. and table.loc["finetuning on made up", "code"] == "0123456789+"

def test_film_and_sound_of_inpainting(tmp_path, monkeypatch):
    run_cells("figure_inpainting.ipynb", monkeypatch, out=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"figure_inpainting.png", "figure_inpainting.svg", *(f"table_errors_inpainting.{x}" for x in ("csv", "md", "tex")), "inpainted.mp4", "inpainted_audio.wav", "original_audio.wav"}
    assert all((tmp_path/name).stat().st_size < 300_000 for name in ("inpainted.mp4", "inpainted_audio.wav", "original_audio.wav"))
    with Media(tmp_path/"inpainted.mp4") as media: assert all(media.streams.values()) and media.duration == pytest.approx(2 * 1.28, abs=.1)
    silent, loud = ([int(np.abs(samples).max()) for samples in np.split(np.frombuffer(wave.open(str(tmp_path/f"{name}_audio.wav")).readframes(10**6), "<i2")[:40_960], 2)] for name in ("inpainted", "original"))
    assert min(loud) > 300 and len(silent) == 2

def complete(folder: Path) -> bool:
    "Whether the whole grid of a scale is in its records."
    planned = {run for job in jobs(folder.name) for run in job.runs} if folder.name in SCALES else {None}
    return planned <= set(load_records(folder/"runs.csv")["run"])

@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_results_follow_from_committed_records(folder, tmp_path, monkeypatch):
    make(folder/"runs.csv", tmp_path, monkeypatch, [*FROM_RECORDS, "table_hyperparameters"])
    run_cells("figure_strategies.ipynb", monkeypatch, recipe=SCALES[folder.name].pretrain["audioset"], out=str(tmp_path))
    if (folder/"reproduce.csv").is_file(): run_cells("table_pretraining.ipynb", monkeypatch, records=str(folder/"reproduce.csv"), out=str(tmp_path))
    for path in sorted(tmp_path.iterdir()):
        there = folder/path.name
        if not there.is_file() and not complete(folder): continue   # the grid has not been run yet
        assert there.is_file(), f"{there} is missing: make paper SCALE={folder.name}"
        same_version = path.suffix != ".svg" or f"Matplotlib v{matplotlib.__version__}" in there.read_text(encoding="utf-8")
        if path.suffix != ".png" and same_version: assert path.read_bytes() == there.read_bytes(), path.name

@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_committed_index_lists_what_is_there(folder):
    assert (folder/"index.md").read_text(encoding="utf-8") == index(folder, NOTEBOOKS)

@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_pictures_name_the_run_that_made_them(folder):
    runs = load_records(folder/"runs.csv").set_index("run")
    if not (folder/"table_errors_reconstruction.md").is_file(): pytest.skip(f"the pictures of {folder.name} were made before their errors were tables")
    for objective in ("reconstruction", "inpainting"):
        name, configuration, weights = re.search(r"Run ([\w-]+), .*configuration (\w+), weights (\w+);", (folder/f"table_errors_{objective}.md").read_text(encoding="utf-8")).groups()
        assert runs.loc[name, ["config_hash", "weights", "config.model.objective"]].tolist() == [configuration, weights, objective]
