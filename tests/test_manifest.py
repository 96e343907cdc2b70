"The manifest: csv files as the corpora publish them, errors that name what is wrong, a hash of the content, and what became of each file."
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from avmae.data import manifest as module
from avmae.data.corpora import read_vggsound
from avmae.data.manifest import SCHEMA, Manifest, Row, media_files
from avmae.data.media import write_clip
from avmae.train.feed import open_manifest
from avmae.train.config import CorpusConfig

def place(root, *names):
    "Files of these names, with nothing in them."
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).touch()

def made_up(root, n=30, classes="abc", **columns):
    "A manifest of files that are not there."
    return Manifest.from_columns(root, {"id": [f"clip{k:02d}" for k in range(n)], "path": [f"{k}.mp4" for k in range(n)], "start": [k / 4 for k in range(n)],
                                        "labels": [[classes[k % len(classes)]] for k in range(n)], "split": ["train" if k < 2 * n // 3 else "test" for k in range(n)], **columns})


# ---- csv files

def test_path_label_split(tmp_path):
    place(tmp_path, "clips/a.mp4", "clips/b.b.mp4")
    (tmp_path/"labels.csv").write_text("path,label,split\nclips/a.mp4,007,train\nclips/b.b.mp4,\"rain, heavy\",test\nclips/c.mp4,nan,train\n")
    found = Manifest.from_csv(tmp_path)
    assert found["id"] == ["clips/a", "clips/b.b", "clips/c"] and found["status"] == ["found", "found", "missing"]
    assert found["labels"] == [["007"], ["rain, heavy"], ["nan"]] and found["split"] == ["train", "test", "train"]   # text stays text
    assert found.classes == ("007", "nan", "rain, heavy") and found.splits == ("test", "train")
    assert found.file(1) == tmp_path/"clips/b.b.mp4" and found[2].note == "there is no such file"

@pytest.mark.parametrize("content", ["\ufeffpath,label,split\r\nx\\a.mp4,dog,train\r\n", "split,extra,label,path\ntrain,1,dog,x/a.mp4\n", 'path,label,split\n"x/a.mp4","dog","train"'],
                         ids=["windows", "other order and more columns", "quoted, no last newline"])
def test_the_same_table_written_otherwise(tmp_path, content):
    place(tmp_path, "x/a.mp4")
    (tmp_path/"labels.csv").write_text(content, newline="")
    assert Manifest.from_csv(tmp_path)[0] == Row("x/a", "x/a.mp4", None, None, ["dog"], "train", "found", "", None, None, None, None)

def test_a_byte_order_mark_does_not_make_numbers_of_text(tmp_path):
    (tmp_path/"labels.csv").write_text("\ufefflabel,path,split\n007,a.mp4,train\n")
    assert Manifest.from_csv(tmp_path)["labels"] == [["007"]]

def test_columns_by_name_several_labels_and_parts_of_a_file(tmp_path):
    place(tmp_path, "P01.MP4")
    (tmp_path/"segments.csv").write_text("video,verb,from,to\nP01.MP4,cut; wash ;,1.5,4\nP01.MP4,,4,\nP01.MP4,wash,10,12\n")
    found = Manifest.from_csv(tmp_path, "segments.csv", path="video", label="verb", split=None, start="from", end="to", label_separator=";")
    assert found["id"] == ["P01@1.5", "P01@4", "P01@10"] and found["labels"] == [["cut", "wash"], [], ["wash"]] and found.splits == ("train",)
    assert [found.within(row) for row in range(3)] == [(1.5, 4.), (4., None), (10., 12.)]
    assert found.with_columns(duration=[3., 20., 20.]).within(0) == (1.5, 3.)   # not beyond the end of the file
    assert Manifest.from_csv(tmp_path, "segments.csv", path="video", label=None, split=None, id="from").classes == ()

def test_a_recipe_reads_parts_of_files_where_the_csv_has_them(tmp_path):
    place(tmp_path, "long.mp4")
    (tmp_path/"labels.csv").write_text("path,label,split,start,end\nlong.mp4,a,train,0,2.5\nlong.mp4,b,test,2.5,\n")
    (tmp_path/"from.csv").write_text("path,label,split,start\nlong.mp4,a,train,7\n")
    (tmp_path/"clock.csv").write_text("path,label,split,start\nlong.mp4,a,train,0:07\n")
    opened = lambda csv: open_manifest(CorpusConfig(root=str(tmp_path), format="csv", csv=csv))
    assert opened("labels.csv")["id"] == ["long@0", "long@2.5"] and [opened("labels.csv").within(row) for row in (0, 1)] == [(0., 2.5), (2.5, None)]
    assert opened("from.csv").within(0) == (7., None)
    with pytest.raises(ValueError) as caught: opened("clock.csv")
    assert "column 'start' must hold seconds" in sentence(caught, "clock.csv")

def test_vggsound_as_published(tmp_path):
    place(tmp_path, "train/--0PQM4-hqg_000030.mp4", "test/0e5_abc-DEF_000001.webm", "test/.hidden/---g-f_I2yQ_000001.mp4")
    (tmp_path/"vggsound.csv").write_text('---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall, burbling",train\n0e5_abc-DEF,1,people marching,test\n')
    found = read_vggsound(tmp_path/"vggsound.csv", tmp_path)
    assert found["id"] == ["---g-f_I2yQ_000001", "--0PQM4-hqg_000030", "0e5_abc-DEF_000001"]
    assert found["status"] == ["missing", "found", "found"] and found.classes == ("people marching", "waterfall, burbling")
    assert found["path"][1:] == ["train/--0PQM4-hqg_000030.mp4", "test/0e5_abc-DEF_000001.webm"]
    assert (found.coverage("test"), found.coverage("train")) == ((1, 2), (1, 1))

def test_media_files_are_found_at_any_depth_and_hidden_ones_left_out(tmp_path):
    place(tmp_path, "b.MKV", "a/b/c.wav", "a/notes.txt", "a/.c.mp4.partial", ".cache/d.mp4", "a/.e.mp4")
    assert media_files(tmp_path) == ["a/b/c.wav", "b.MKV"]


# ---- errors

BAD_TABLES = {"column": ("file,label,split\na.mp4,x,train\n", "there is no column 'path' among 'file', 'label', 'split'; say which one to use"),
              "label": ("path,split\na.mp4,train\n", "there is no column 'label'"), "split": ("path,label\na.mp4,x\n", "there is no column 'split'"),
              "header only": ("path,label,split\n", "lists no clip; give each clip a line"), "nothing": ("", "cannot be read"),
              "short line": ("path,label,split\na.mp4,x\n", "as many values in every line"), "latin": ("path,label,split\na.mp4,caf\udce9,train\n", "must be UTF-8"),
              "twice": ("path,label,split\na.mp4,x,train\na.mp4,y,train\n", "have the id of another, such as 'a'; ids must be unique")}

def sentence(caught, name) -> str:
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and name in said
    return said

@pytest.mark.parametrize("content, told", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_are_one_sentence(tmp_path, content, told):
    (tmp_path/"labels.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as caught: Manifest.from_csv(tmp_path)
    assert told in sentence(caught, str(tmp_path) if "ids" in told else "labels.csv")

@pytest.mark.parametrize("make, error, told", [
    (lambda root: Manifest.from_csv(root), FileNotFoundError, "labels.csv: there is no such csv file; name the file"),
    (lambda root: read_vggsound(root/"vggsound.csv", root), FileNotFoundError, "vggsound.csv: there is no such csv file"),
    (lambda root: read_vggsound(root/"ok.csv", root/"nowhere"), FileNotFoundError, "nowhere: there is no such folder; name the folder"),
    (lambda root: read_vggsound(root/"header.csv", root), ValueError, "header.csv: the second column must be the start in whole seconds"),
    (lambda root: Manifest.from_csv(root, "header.csv", path="id", split=None, start="label"), ValueError, "header.csv: column 'label' must hold seconds"),
    (lambda root: Manifest.load(root/"none.parquet"), FileNotFoundError, "none.parquet: there is no such manifest; name a file"),
    (lambda root: Manifest.load(root/"ok.csv"), ValueError, "ok.csv: this is not a manifest"),
    (lambda root: Manifest.load(root/"other.parquet"), ValueError, "other.parquet: this parquet file is not a manifest"),
    (lambda root: made_up(root).split("val"), ValueError, "there is no split 'val' among 'test', 'train'; choose one of these"),
    (lambda root: made_up(root).subset(8), ValueError, "class 'a' has 7 clips in split 'train', fewer than 8; ask for fewer")])
def test_mistakes_are_one_sentence(tmp_path, make, error, told):
    (tmp_path/"ok.csv").write_text("---g-f_I2yQ,1,people marching,test\n")
    (tmp_path/"header.csv").write_text("id,start,label,split\nx,1,y,train\n")
    pq.write_table(pa.table({"a": [1]}), tmp_path/"other.parquet")
    with pytest.raises(error) as caught: make(tmp_path)
    assert told in sentence(caught, "")

def test_an_empty_folder_lists_everything_as_missing(tmp_path):
    (tmp_path/"labels.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,test\n")
    found = Manifest.from_csv(tmp_path)
    assert found.reasons() == "2 missing" and len(found.readable()) == 0 and found.coverage("test") == (0, 1)
    assert "a: there is no such file" in found.report()


# ---- hash

def test_hash_is_that_of_the_content_and_has_not_changed(tmp_path):
    assert made_up(tmp_path).hash == "eaa80e4aeeef1965"

def test_hash_knows_nothing_of_order_place_and_measurement(tmp_path):
    (tmp_path/"elsewhere").mkdir()
    table = made_up(tmp_path)
    rng = np.random.default_rng(0)
    for same in (*(table.take(rng.permutation(30)) for _ in range(5)), made_up(tmp_path/"elsewhere"), table.with_columns(duration=[1.] * 30, fps=[25.] * 30, note=["?"] * 30)):
        assert same.hash == table.hash

@pytest.mark.parametrize("name, value", [("id", "other"), ("path", "30.mp4"), ("start", 9.), ("end", 9.), ("labels", []), ("labels", ["a", "b"]), ("split", "val"), ("status", "ok"), ("checksum", "0" * 64)])
def test_hash_changes_with_any_one_value(tmp_path, name, value):
    table = made_up(tmp_path)
    changed = [value, *table[name][1:]]
    assert changed != table[name] and table.with_columns(**{name: changed}).hash != table.hash
    assert table.take(np.arange(29)).hash != table.hash


# ---- parts of it

def test_parts_keep_rows_and_the_classes_of_the_whole(tmp_path):
    table = made_up(tmp_path)
    mask = np.arange(30) % 3 == 0
    assert table.take(mask)["id"] == table.take(np.flatnonzero(mask))["id"] == [row.id for row in table if row.labels == ["a"]]
    assert sorted(table.split("train")["id"] + table.split("test")["id"]) == table["id"]
    assert table.take(mask).classes == table.split("test").classes == table.classes and table[-1] == table[29]

def test_the_clips_of_another_list_in_its_order(tmp_path):
    table, wanted = made_up(tmp_path).with_columns(status=["ok"] * 30), made_up(tmp_path).take([7, 3, 25])
    assert table.listed_in(wanted)["id"] == wanted["id"] and table.listed_in(wanted)["status"] == ["ok"] * 3 and table.listed_in(wanted).classes == table.classes
    with pytest.raises(ValueError) as caught: table.take(np.arange(5)).listed_in(wanted)
    assert "2 of the 3 clips asked for are not listed here, such as 'clip07'" in sentence(caught, str(tmp_path))

def test_subsets_are_nested_balanced_and_follow_from_seed_and_ids(tmp_path):
    table = made_up(tmp_path, 90)
    shuffled = table.take(np.random.default_rng(1).permutation(90))
    kept = {n: table.subset(n, seed=3) for n in (1, 2, 5, 20)}
    for n, part in kept.items():
        assert [sum(row.labels == [name] for row in part.split("train")) for name in "abc"] == [n] * 3
        assert part.split("test")["id"] == table.split("test")["id"] and set(shuffled.subset(n, seed=3)["id"]) == set(part["id"])
    assert set(kept[1]["id"]) < set(kept[2]["id"]) < set(kept[5]["id"]) < set(kept[20]["id"]) == set(table["id"])
    assert set(table.subset(5, seed=4)["id"]) != set(kept[5]["id"])


# ---- files

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "One file of each kind -> (folder, status by name)."
    root, g = tmp_path_factory.mktemp("corpus"), torch.Generator().manual_seed(0)
    video, sound = torch.randint(0, 255, (50, 3, 16, 16), dtype=torch.uint8, generator=g), torch.randn(32000, generator=g) / 8
    for name, *streams in (("good", video, sound), ("silent", video, None), ("radio", None, sound), ("short", video[:5], sound[:3200])): write_clip(root/f"{name}.mp4", *streams)
    (root/"cut.mp4").write_bytes((root/"good.mp4").read_bytes()[:-12000])
    (root/"page.mp4").write_text("<html>Video unavailable</html>")
    return root, {"good": "ok", "silent": "no audio", "radio": "no video", "short": "too short", "cut": "truncated", "page": "undecodable", "gone": "missing"}

def listed(root, names, **columns): return Manifest.from_columns(root, {"id": list(names), "path": [f"{name}.mp4" for name in names], **columns})

def test_check_says_what_became_of_each_file(corpus):
    root, expected = corpus
    checked = listed(root, expected).check(min_seconds=.5, checksum=True)
    assert dict(zip(checked["id"], checked["status"])) == expected
    good, silent = checked[0], checked[1]
    assert (good.duration, good.fps, good.audio_rate, len(good.checksum)) == (2., 25., 16000, 64) and silent.audio_rate is None
    assert all(row.note for row in checked if row.id in ("short", "cut", "page", "gone")) and not good.note
    assert checked.readable()["id"] == ["good", "silent", "radio", "cut"] and checked.readable(without=["no audio"])["id"] == ["good", "radio", "cut"]
    assert checked.coverage("train") == (4, 7) and len(checked) == 7   # what cannot be read is listed all the same

def test_report_names_at_most_so_many(corpus):
    root, _ = corpus
    checked = listed(root, [f"none{k}" for k in range(9)]).check()
    assert "train: 0 of 9 clips can be read" in checked.report() and "... and 6 more" in checked.report(limit=3)
    assert checked.report(limit=None).count("none") == 9

def test_a_file_is_opened_once_however_many_clips_it_holds(corpus, monkeypatch):
    root, _ = corpus
    looks, look = [], module._look
    monkeypatch.setattr(module, "_look", lambda path, *more: looks.append(path) or look(path, *more))
    checked = Manifest.from_columns(root, {"id": list("abc"), "path": ["good.mp4"] * 3, "start": [0., .5, 1.], "end": [.5, 1., 9.]}).check()
    assert len(looks) == 1 and checked["status"] == ["ok"] * 3 and [checked.within(row) for row in range(3)] == [(0., .5), (.5, 1.), (1., 2.)]

def test_saved_and_loaded_it_is_the_same(corpus, tmp_path):
    root, expected = corpus
    table = listed(root, expected, labels=[["b"], ["a", "b"], [], ["c"], [], [], []]).check()
    table.take([0]).save(tmp_path/"m.parquet")
    table.save(tmp_path/"m.parquet")
    again = Manifest.load(tmp_path/"m.parquet", root=root)
    assert list(again) == list(table) and (again.hash, again.classes, again.root) == (table.hash, ("a", "b", "c"), root)
    part = table.take([0])
    part.save(tmp_path/"part.parquet")
    assert Manifest.load(tmp_path/"part.parquet").classes == ("a", "b", "c") and Manifest.load(tmp_path/"part.parquet").root == tmp_path
    assert again.table.schema.equals(SCHEMA)

def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    made_up(tmp_path).save(tmp_path/"m.parquet")
    def fail(table, path): path.write_bytes(b"half"); raise OSError("disk full")
    monkeypatch.setattr(module.pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"): made_up(tmp_path, 3).save(tmp_path/"m.parquet")
    assert len(Manifest.load(tmp_path/"m.parquet")) == 30 and [p.name for p in tmp_path.iterdir()] == ["m.parquet"]
