"What keeps a stored benchmark honest: it names its commit, was measured at full size, and its verdicts follow from its figures."
import json, multiprocessing, re, sys, weakref
from pathlib import Path
import pandas as pd
import pytest
import torch
from avmae.data.clips import ClipConfig, ClipDataset, Sample
from avmae.data.loader import make_loader
from avmae.data.manifest import Manifest

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

class Leaky(ClipDataset):
    "Makes its samples up, and keeps `kept` bytes of each in the process that reads it."
    kept, all_kept = 0, []

    def repeated(self, key):
        self.all_kept.append(b"x" * self.kept)
        return [Sample(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(1600), [], self.id(key[1]))]

def measure_of_the_notebook():
    "Its own `watched` and `growth`."
    cells = ["".join(cell["source"]) for cell in json.loads((ROOT/"nbs"/"benchmarks"/"data.ipynb").read_text(encoding="utf-8"))["cells"]]
    names = {"re": re, "Path": Path, "multiprocessing": multiprocessing, "pd": pd}
    exec(next(cell for cell in cells if cell.startswith("def held(")), names)
    return names["watched"], names["growth"]

class Ring:
    "Refers to itself, as PyAV's pictures do, so that only the garbage collector ends it."
    def __init__(self): self.itself = self

class Rings(Leaky):
    "The label of a sample is the number of rings of earlier samples that are still there."
    made = []

    def repeated(self, key):
        alive = sum(ring() is not None for ring in self.made)
        self.made.append(weakref.ref(Ring()))
        return [sample._replace(labels=[alive]) for sample in super().repeated(key)]

def four_clips(kind):
    manifest = Manifest.from_columns("corpus", {"id": list("abcd"), "path": list("abcd"), "status": ["ok"] * 4})
    return kind(manifest, ClipConfig(frames=2, size=64, resize=64, samples=1600), train=True, progress=False)

def grown(kept_by_workers, kept_by_main, reads=600):
    "MB that are said to leak of `reads` clips."
    (watched, growth), dataset = measure_of_the_notebook(), four_clips(Leaky)
    dataset.kept = kept_by_workers   # before the workers are forked
    batches, kept = iter(make_loader(dataset, 4, workers=2)), []

    def read(done):
        batch = next(batches)
        batch.video.max()
        if kept_by_main: kept.append(batch)
        return len(batch.ids)
    return growth(watched(read, reads, looks=40))

@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")
def test_growth_is_none_of_a_sound_loader_and_that_of_a_leak():
    assert abs(grown(0, False)) < 5
    expected = .8 * 600 * 2**17 / 2**20   # from the middle of the second tenth to that of the last
    assert .9 * expected < grown(2**17, False) < 1.2 * expected
    batch = 4 * (2 * 3 * 64 * 64 + 4 * 1600)
    assert grown(0, True) > .8 * .8 * 150 * batch / 2**20

def test_workers_end_what_refers_to_itself_with_every_batch():
    rings = lambda workers: max(batch.labels.max().item() for batch in make_loader(four_clips(Rings), 4, workers=workers, steps=20))
    assert rings(1) == 3, "those of the same batch"
    assert rings(0) > 3, "the training process is left to Python, and shows what would be"
