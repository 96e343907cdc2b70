"What keeps a stored benchmark honest: it names its commit, was measured at full size, and its verdicts follow from its figures."
import json, re
from pathlib import Path
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs"/"benchmarks").glob("*.ipynb"))
STORED = ROOT/"paper_figures"/"benchmarks"/"data.csv"

@pytest.fixture(scope="module")
def stored() -> pd.DataFrame:
    if not STORED.exists(): pytest.skip("no measurement is committed yet")
    return pd.read_csv(STORED)

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_benchmark_has_one_parameters_cell_and_writes_nothing_unasked(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [k for k, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and cells[tagged[0] - 1]["cell_type"] == "markdown", "one tagged cell, with words before it"
    assert not any("injected-parameters" in cell["metadata"].get("tags", []) for cell in cells), "this is an executed copy, not the template"
    assert re.search(r'^out = ""', "".join(cells[tagged[0]]["source"]), re.M)

def test_stored_figures_come_from_one_clean_commit_and_processor(stored):
    assert stored["commit"].nunique() == 1 and re.fullmatch("[0-9a-f]{40}", stored["commit"][0]), "measured on edited code: commit, then measure"
    assert stored["processor"].nunique() == 1 and stored["processor"].notna().all()

def test_stored_figures_are_of_full_size(stored):
    first = stored.iloc[0]
    assert (first["reads"], first["rows"], first["preset"]) == (5000, 2_000_000, "medium") and first["samples"] >= 30

def test_verdicts_follow_from_figures_and_targets(stored):
    aimed = stored[stored["target"].notna()]
    assert len(aimed) >= 8, "each aim has a row"
    for row in aimed.itertuples():
        sign, target = row.target.split()
        met = row.value >= float(target) if sign == "≥" else row.value < float(target)
        assert row.verdict == ("not measured" if pd.isna(row.value) else "met" if met else "not met"), row.figure

def test_table_shows_the_stored_figures(stored):
    text = STORED.with_suffix(".md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| (.+?) \| ([\d.]+|not measured)", text, re.M))
    assert list(shown) == list(stored["figure"])
    for row in stored.itertuples():
        assert shown[row.figure] == "not measured" if pd.isna(row.value) else abs(float(shown[row.figure]) - row.value) <= .051, row.figure
    assert stored["commit"][0] in text and stored["processor"][0] in text
