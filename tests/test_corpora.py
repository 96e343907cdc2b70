"The three corpora: their files as published, the order of their classes, subsets, heads and times, names of media files, and sentences that name the line."
import numpy as np
import pytest
from avmae.data import corpora, mini
from avmae.data.corpora import class_list, clock_seconds, draw_balanced, files_by, read_audioset, read_epic_kitchens, read_vggsound, youtube_name
from avmae.data.manifest import Manifest
from avmae.train.engine import fit
from avmae.train.evaluate import evaluate
from avmae.train.feed import open_manifest
from avmae.train.config import CorpusConfig
from avmae.train.recipes import get_recipe

def place(root, *names):
    "Files of these names, with nothing in them."
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).touch()

def sentence(caught, *parts) -> None:
    said = str(caught.value)
    assert "\n" not in said and said.endswith("."), said
    for part in parts: assert part in said, said


# ---- names of files

@pytest.mark.parametrize("stem, name", [
    ("--4gqARaEJE", ("--4gqARaEJE", None)), ("Y--4gqARaEJE", ("--4gqARaEJE", None)), ("-_0gqARaE_E_000030", ("-_0gqARaE_E", 30.)), ("--4gqARaEJE_30", ("--4gqARaEJE", 30.)),
    ("--4gqARaEJE_30_40", ("--4gqARaEJE", 30.)), ("--4gqARaEJE_30.0-40.0", ("--4gqARaEJE", 30.)), ("--4gqARaEJE_30000_40000", ("--4gqARaEJE", 30_000.)),
    ("Y--4gqARaEJE_30.000_40.000", ("--4gqARaEJE", 30.)), ("Yabcdefghij_30", ("Yabcdefghij", 30.)), ("Yabcdefghij", ("Yabcdefghij", None)), ("0e5_1234567_1", ("0e5_1234567", 1.)),
    ("short_30", None), ("--4gqARaEJE.f137", None), ("--4gqARaEJE_30_40_50", None), ("--4gqARaEJE (1)", None), ("", None)])
def test_names_that_download_scripts_give(stem, name): assert youtube_name(stem) == name

def test_pictures_come_before_sound_and_folders_in_order(tmp_path):
    place(tmp_path, "z/a.mp4", "b/a.m4a", "y/a.MKV", "a.wav", "other.mp4", "a.txt", ".hidden/a.mp4")
    assert files_by(tmp_path, lambda stem: stem if stem == "a" else None) == {"a": ["y/a.MKV", "z/a.mp4", "a.wav", "b/a.m4a"]}


# ---- VGGSound

VGGSOUND = '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall, burbling",train\n0e5_abc-DEF,20,people marching,train\n'

@pytest.mark.parametrize("name", ["--0PQM4-hqg_000030.mp4", "x/y/--0PQM4-hqg_30.webm", "--0PQM4-hqg_30_40.MP4", "Y--0PQM4-hqg_30.000_40.000.wav", "--0PQM4-hqg_30000_40000.mkv", "--0PQM4-hqg.mp4"])
def test_vggsound_finds_a_clip_under_each_name(tmp_path, name):
    (tmp_path/"vggsound.csv").write_text(VGGSOUND)
    place(tmp_path/"media", name)
    found = read_vggsound(tmp_path/"vggsound.csv", tmp_path/"media")
    assert (found[1].path, found[1].status, found[1].note, found.within(1)) == (name, "found", "", (0., None)) and found.reasons() == "2 missing, 1 found"
    whole = read_vggsound(tmp_path/"vggsound.csv", tmp_path/"media", whole_videos=True)
    assert whole.within(1) == ((30., 40.) if name == "--0PQM4-hqg.mp4" else (0., None))

def test_of_several_files_the_one_with_the_right_start_is_read_and_its_twin_named(tmp_path):
    (tmp_path/"vggsound.csv").write_text(VGGSOUND)
    place(tmp_path, "a/--0PQM4-hqg.mp4", "b/--0PQM4-hqg_30.mp4", "c/--0PQM4-hqg_000030.mp4", "c/--0PQM4-hqg_000030.wav", "d/--0PQM4-hqg_000040.mp4", "0e5_abc-DEF_5.mp4")
    found = read_vggsound(tmp_path/"vggsound.csv", tmp_path)
    assert found["path"] == ["---g-f_I2yQ_000001.mp4", "b/--0PQM4-hqg_30.mp4", "0e5_abc-DEF_000020.mp4"] and found["status"] == ["missing", "found", "missing"]
    assert found["note"] == ["there is no such file", "of the same name and not read: c/--0PQM4-hqg_000030.mp4", "there is no such file, but one with another start: 0e5_abc-DEF_5.mp4"]
    assert all(note in found.report() for note in found["note"])

def test_vggsound_has_the_hash_it_had(tmp_path):
    (tmp_path/"vggsound.csv").write_text(VGGSOUND)
    place(tmp_path, "test/---g-f_I2yQ_000001.mp4", "test/0e5_abc-DEF_000020.webm")
    assert read_vggsound(tmp_path/"vggsound.csv", tmp_path).hash == "3a3bd872054edf2a"


# ---- AudioSet

HEAD = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids={n}, num_segs={n}, num_unique_labels=4, num_positive_labels=9\n# YTID, start_seconds, end_seconds, positive_labels\n"
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00003,"Baby, cry; ""loud"""\n3,/m/068hy,"Animal"\n'
NAMES = ("Speech", "Male speech, man speaking", 'Baby, cry; "loud"', "Animal")
LISTS = {"balanced_train": ['--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/09x0r"', '--BfvyPmVMo, 20.000, 30.000, "/t/dd00003"'],
         "unbalanced_train": ['---1_cCGK4M, 0.000, 10.000, "/m/05zppz,/m/09x0r,/t/dd00003"', '-0SdAVK79lg, 30.000, 37.500, "/m/09x0r"', '1e5AVK79lg_, 110.000, 120.000, "/m/09x0r"'],
         "eval": ['-0RWZT-miFs, 420.000, 430.000, "/m/068hy"']}

def write_audioset(root, lists=LISTS, classes=CLASSES, head=HEAD, end="\n"):
    root.mkdir(parents=True, exist_ok=True)
    (root/"class_labels_indices.csv").write_text(classes)
    for name, lines in lists.items(): (root/f"{name}_segments.csv").write_text((head.format(n=len(lines)) + "\n".join([*lines, ""])).replace("\n", end), newline="")
    return root

def test_audioset_as_published(tmp_path):
    place(tmp_path, "media/00/Y--4gqARaEJE.mp4", "media/eval/-0RWZT-miFs_420.mp4", "media/-0SdAVK79lg_30_37.mp4")
    found = read_audioset(write_audioset(tmp_path/"csv"), tmp_path/"media")
    assert found["id"] == ["--4gqARaEJE_000000", "--BfvyPmVMo_000020", "---1_cCGK4M_000000", "-0SdAVK79lg_000030", "1e5AVK79lg__000110", "-0RWZT-miFs_000420"]
    assert found["labels"] == [["Animal", "Speech"], [NAMES[2]], [NAMES[1], "Speech", NAMES[2]], ["Speech"], ["Speech"], ["Animal"]]
    assert found.classes == NAMES and found["split"] == ["train"] * 5 + ["test"]
    assert found["status"] == ["found", "missing", "missing", "found", "missing", "found"] and (found.coverage("train"), found.coverage("test")) == ((2, 5), (1, 1))
    assert "--BfvyPmVMo_000020: there is no such file" in found.report()
    assert read_audioset(tmp_path/"csv", tmp_path/"media", whole_videos=True).within(0) == (0., 10.)

@pytest.mark.parametrize("change", [dict(end="\r\n"), dict(head=""), dict(lists={name: [line.replace(", ", ",") for line in lines] for name, lines in LISTS.items()}),
                                    dict(head="\ufeff" + HEAD), dict(classes="index,mid,display_name\n" + "".join(f"{line}\n" for line in CLASSES.splitlines()[:0:-1]))],
                         ids=["windows", "no comments", "no blanks", "byte order mark", "classes in another order"])
def test_audioset_written_otherwise_is_the_same(tmp_path, change):
    (tmp_path/"media").mkdir()
    one, other = (read_audioset(folder, tmp_path/"media") for folder in (write_audioset(tmp_path/"a"), write_audioset(tmp_path/"b", **change)))
    assert (one.hash, one.classes) == (other.hash, other.classes)

def test_subsets_of_audioset(tmp_path):
    folder = write_audioset(tmp_path/"csv")
    (tmp_path/"ids.txt").write_text("# chosen by hand\n-0SdAVK79lg\n\n--4gqARaEJE, 0.000, 10.000\n")
    training = lambda subset: [name[:11] for name in read_audioset(folder, tmp_path, subset).split("train")["id"]]
    assert training("20K") == ["--4gqARaEJE", "--BfvyPmVMo"] and len(training("2M")) == 5
    assert training(tmp_path/"ids.txt") == training(str(tmp_path/"ids.txt")) == ["--4gqARaEJE", "-0SdAVK79lg"]
    assert all(len(read_audioset(folder, tmp_path, subset).split("test")) == 1 for subset in ("20K", "2M", tmp_path/"ids.txt"))
    (folder/"unbalanced_train_segments.csv").unlink()
    assert len(training("20K")) == 2   # does not need it
    with pytest.raises(FileNotFoundError) as caught: training("2M")
    sentence(caught, "unbalanced_train_segments.csv: there is no such csv file")

def test_half_a_million_is_drawn_by_seed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(corpora, "draw_balanced", lambda manifest, count, seed: asked.append((len(manifest), count, seed)) or manifest)
    read_audioset(write_audioset(tmp_path), tmp_path, "500K", seed=7)
    assert asked == [(6, 508_994, 7)]

BAD_AUDIOSET = {
    "class": (dict(lists=LISTS | {"eval": ['-0RWZT-miFs, 420.000, 430.000, "/m/068hy"', 'x, 0.000, 10.000, "/m/068hy,/m/0"']}),
              "eval_segments.csv, line 5: column 'positive_labels' has '/m/0', which class_labels_indices.csv does not list"),
    "no label": (dict(lists=LISTS | {"eval": ['-0RWZT-miFs, 420.000, 430.000, ""']}), "line 4: column 'positive_labels' has ''"),
    "seconds": (dict(lists=LISTS | {"balanced_train": [*LISTS["balanced_train"], 'x, 0:20, 10.000, "/m/068hy"']}), "balanced_train_segments.csv, line 6: column 'start_seconds' must hold seconds, not '0:20'"),
    "values": (dict(lists=LISTS | {"eval": ["-0RWZT-miFs, 420.000, 430.000, /m/068hy,/m/09x0r"]}), "eval_segments.csv, line 4: there are 5 values instead of 4"),
    "nothing": (dict(lists=LISTS | {"eval": []}), "eval_segments.csv: "),
    "numbers": (dict(classes="index,mid,display_name\n0,/m/09x0r,Speech\n2,/m/068hy,Animal\n"), "class_labels_indices.csv, line 3: 'index' is '2', but these numbers must be 0, 1, 2 and so on"),
    "twice": (dict(classes=CLASSES.replace('"Animal"', '"Speech"')), "class_labels_indices.csv: column 'display_name' has 'Speech' more than once"),
    "column": (dict(classes="index,mid,name\n0,/m/09x0r,Speech\n"), "class_labels_indices.csv: there is no column 'display_name'"),
    "same clip": (dict(lists=LISTS | {"eval": LISTS["balanced_train"][:1]}), "1 clips have the id of another, such as '--4gqARaEJE_000000'")}

@pytest.mark.parametrize("change, told", BAD_AUDIOSET.values(), ids=BAD_AUDIOSET)
def test_mistakes_in_audioset_are_one_sentence(tmp_path, change, told):
    with pytest.raises(ValueError) as caught: read_audioset(write_audioset(tmp_path, **change), tmp_path)
    sentence(caught, told)

def test_unknown_subsets_and_ids_are_told(tmp_path):
    folder = write_audioset(tmp_path)
    with pytest.raises(ValueError) as caught: read_audioset(folder, tmp_path, "20k")
    sentence(caught, "AudioSet has the subsets 20K, 500K, 2M; '20k' is none of them, and no file of ids")
    (tmp_path/"ids.txt").write_text("-0SdAVK79lg\n-0RWZT-miFs\nnone-at-all\n")   # the second one is for testing
    with pytest.raises(ValueError) as caught: read_audioset(folder, tmp_path, tmp_path/"ids.txt")
    sentence(caught, "ids.txt, line 2: '-0RWZT-miFs' is not in the lists to train on, nor are 1 others")
    with pytest.raises(ValueError) as caught: read_audioset(folder, tmp_path, "500K")
    sentence(caught, "split 'train' has 5 clips, fewer than 508994")


# ---- a balanced draw

def uneven(root, n=4000, seed=0):
    "Clips of one or two of six classes, each three times as frequent as the next; one clip without a label, and some to test on."
    rng, often = np.random.default_rng(seed), 3. ** -np.arange(6)
    labels = [[], *([f"c{k}" for k in rng.choice(6, rng.integers(1, 3), replace=False, p=often / often.sum())] for _ in range(n - 1))]
    return Manifest.from_columns(root, {"id": [f"{k:05d}" for k in range(n)], "path": ["x"] * n, "status": ["missing"] * n, "labels": labels, "split": ["train" if k < .9 * n else "test" for k in range(n)]})

def shares(manifest):
    counts = np.array([sum(name in labels for labels in manifest.split("train")["labels"]) for name in manifest.classes])
    return counts / len(manifest.split("train"))

def test_draws_are_balanced_nested_and_follow_from_seed_and_content(tmp_path):
    table = uneven(tmp_path)
    drawn = {count: draw_balanced(table, count, seed=3) for count in (100, 800, 3600)}
    assert [len(part.split("train")) for part in drawn.values()] == [100, 800, 3600] and all(part.split("test")["id"] == table.split("test")["id"] for part in drawn.values())
    assert set(drawn[100]["id"]) < set(drawn[800]["id"]) < set(drawn[3600]["id"]) == set(table["id"])
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    assert set(draw_balanced(shuffled, 800, seed=3)["id"]) == set(drawn[800]["id"]) != set(draw_balanced(table, 800, seed=4)["id"])
    assert shares(drawn[800]).max() / shares(drawn[800]).min() < shares(table).max() / shares(table).min() / 4
    assert "00000" not in draw_balanced(table, 3599)["id"]   # no label: last

def test_too_large_a_draw_is_refused(tmp_path):
    with pytest.raises(ValueError) as caught: draw_balanced(uneven(tmp_path), 3601)
    sentence(caught, "split 'train' has 3600 clips, fewer than 3601; draw fewer")


# ---- Epic-Kitchens-100

COLUMNS = ("narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,"
           "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n")
TRAIN = ["P01_01_2,P01,P01_01,00:00:05.349,00:00:06.98,00:00:09.49,418,569,close door,close,4,door,3,['door'],[3]",
         "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]",
         "P01_102_0,P01,P01_102,00:00:01.100,01:02:03.045,01:02:05,27,111,\"take knife, and plate\",take,0,knife,4,\"['knife', 'plate']\",\"[4, 2]\""]
VALIDATION = ["P02_12_7,P02,P02_12,00:00:05.349,00:00:06.98,00:00:09.49,418,569,close tap,close,4,tap,0,['tap'],[0]"]
VERBS = 'id,key,instances,category\n' + "".join(f"{k},{name},\"['{name}', 'x']\",other\n" for k, name in enumerate(["take", "put", "wash", "open", "close"]))
NOUNS = '"id","key","instances","category"\n' + "".join(f'{k},"{name}","[\'{name}\']","other"\n' for k, name in enumerate(["tap", "spoon", "plate", "cupboard", "board:chopping"]))

def write_epic(root, train=TRAIN, validation=VALIDATION, **classes):
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", train), ("validation", validation)): (root/f"EPIC_100_{name}.csv").write_text(COLUMNS + "\n".join([*lines, ""]))
    for name, text in classes.items(): (root/f"EPIC_100_{name}.csv").write_text(text)
    return root

def test_epic_kitchens_as_published(tmp_path):
    place(tmp_path, "EPIC-KITCHENS/P01/videos/P01_01.MP4", "flat/P02_12.mp4")
    found = read_epic_kitchens(write_epic(tmp_path/"csv", verb_classes=VERBS, noun_classes=NOUNS), tmp_path)
    assert found["id"] == ["P01_01_2", "P01_01_0", "P01_102_0", "P02_12_7"] and found["split"] == ["train"] * 3 + ["validation"]
    assert found["labels"] == [["noun/cupboard", "verb/close"], ["noun/cupboard", "verb/open"], ["noun/board:chopping", "verb/take"], ["noun/tap", "verb/close"]]
    assert found["path"] == ["EPIC-KITCHENS/P01/videos/P01_01.MP4"] * 2 + ["P01/videos/P01_102.MP4", "flat/P02_12.mp4"] and found["status"] == ["found", "found", "missing", "found"]
    assert [found.within(row) for row in range(4)] == [(6.98, 9.49), (.14, 3.37), (pytest.approx(3723.045), 3725.), (6.98, 9.49)]
    assert found.classes == tuple(f"noun/{x}" for x in ("tap", "spoon", "plate", "cupboard", "board:chopping")) + tuple(f"verb/{x}" for x in ("take", "put", "wash", "open", "close"))
    assert "P01_102_0: there is no such file" in found.report() and found.coverage("train") == (2, 3)

def test_without_lists_of_classes_all_have_numbers(tmp_path):
    found = read_epic_kitchens(write_epic(tmp_path, noun_classes_v2=NOUNS), tmp_path)
    assert found["labels"][2] == ["noun/board:chopping", "verb/0"] and len(found.classes) == 5 + 97
    (tmp_path/"EPIC_100_noun_classes_v2.csv").unlink()
    found = read_epic_kitchens(tmp_path, tmp_path)
    assert found.classes == tuple(f"noun/{k}" for k in range(300)) + tuple(f"verb/{k}" for k in range(97)) and found["labels"][2] == ["noun/4", "verb/0"]

def test_clips_that_are_cut_already_are_read_whole(tmp_path):
    place(tmp_path, "P01_01.mp4", "cut/P01_01_2.mp4", "cut/P01_01_2.wav", "twin/P01_01_2.mp4")
    found = read_epic_kitchens(write_epic(tmp_path/"csv"), tmp_path)
    assert [(found[k].path, found.within(k), found[k].note) for k in (0, 1)] == [
        ("cut/P01_01_2.mp4", (0., None), "of the same name and not read: twin/P01_01_2.mp4"), ("P01_01.mp4", (.14, 3.37), "")]

@pytest.mark.parametrize("text, seconds", [("00:00:00.14", .14), ("01:02:03", 3723.), ("0:0:59.999", 59.999)])
def test_times_of_day(text, seconds): assert clock_seconds(text) == pytest.approx(seconds)

LINE = VALIDATION[0]
BAD_EPIC = {
    "time": (LINE.replace("00:00:09.49", "9.49"), "EPIC_100_validation.csv, line 2: column 'stop_timestamp' must hold a time such as 00:01:02.345, not '9.49'"),
    "backwards": (LINE.replace("00:00:09.49", "00:00:06.98"), "EPIC_100_validation.csv, line 2: the clip ends at 6.98 s, not after its start at 6.98 s"),
    "no number": (LINE.replace("close,4", "close,x"), "line 2: column 'verb_class' must hold the number of a class, not 'x'"),
    "no class": (LINE.replace("tap,0", "tap,300"), "line 2: column 'noun_class' is 300, but there are 300 classes, counted from 0"),
    "values": (LINE + ",1", "EPIC_100_validation.csv, line 2: there are 16 values instead of 15")}

@pytest.mark.parametrize("line, told", BAD_EPIC.values(), ids=BAD_EPIC)
def test_mistakes_in_epic_kitchens_are_one_sentence(tmp_path, line, told):
    with pytest.raises(ValueError) as caught: read_epic_kitchens(write_epic(tmp_path, validation=[line]), tmp_path)
    sentence(caught, told)

def test_missing_lists_and_columns_are_named(tmp_path):
    write_epic(tmp_path)
    (tmp_path/"EPIC_100_train.csv").write_text(COLUMNS.replace("noun_class,", "class,") + TRAIN[0] + "\n")
    with pytest.raises(ValueError) as caught: read_epic_kitchens(tmp_path, tmp_path)
    sentence(caught, "EPIC_100_train.csv: there is no column 'noun_class' among 'narration_id'")
    (tmp_path/"EPIC_100_train.csv").unlink()
    with pytest.raises(FileNotFoundError) as caught: read_epic_kitchens(tmp_path, tmp_path)
    sentence(caught, "EPIC_100_train.csv: there is no such csv file")

def test_class_numbers_may_stand_in_any_order(tmp_path):
    (tmp_path/"c.csv").write_text("id,key\n" + "".join(f"{k},n{k}\n" for k in (10, 2, 0, 1, *range(3, 10))))
    assert class_list(tmp_path/"c.csv", "id", "key") == [[f"n{k}" for k in range(11)]]


# ---- from the official lists to a trained model

OVERRIDES = {"audioset": {"loss": "sigmoid", "corpus.csv": "2M"}, "epic_kitchens": {"corpus.test_split": "validation", "model.num_classes": {"verb": 8, "noun": 8}}}
SCORES = {"audioset": {"mAP", "auc", "d_prime"}, "epic_kitchens": {"top1", "top1_verb", "top1_noun"}}

@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> dict:
    "Folders of 12 + 6 clips."
    root = tmp_path_factory.mktemp("corpora")
    return {"audioset": mini.write_mini_audioset(root/"audioset", train=12, test=6, processes=1),
            "epic_kitchens": mini.write_mini_epic_kitchens(root/"epic_kitchens", train=12, test=6, processes=1)}

@pytest.mark.parametrize("name", OVERRIDES)
def test_a_recipe_reads_the_lists_trains_and_is_scored(miniatures, tmp_path, name):
    at = {"corpus.root": str(miniatures[name]), "corpus.format": name, "corpus.csv": ".", "steps": 2}
    kept = {key: value for key, value in OVERRIDES[name].items() if key.startswith("corpus.")}
    fit(get_recipe("smoke_pretrain", **at | kept), tmp_path/"pretrained", device="cpu", progress=False)
    fit(get_recipe("smoke_finetune", **at | OVERRIDES[name], init_from=str(tmp_path/"pretrained")), tmp_path/"run", device="cpu", progress=False)
    record = evaluate(tmp_path/"run", device="cpu", progress=False)
    test = record["config"]["corpus"]["test_split"]
    assert record["manifest"]["coverage"] == {"train": [12, 12], test: [6, 6]} and record["manifest"]["failures"] == {}
    assert record["result"]["clips"] == 6 and SCORES[name] <= record["result"].keys()

def test_lists_may_lie_elsewhere_and_a_subset_may_be_a_file_beside_them(miniatures, tmp_path):
    root = miniatures["audioset"]
    for path in root.glob("*.csv"): (tmp_path/path.name).write_bytes(path.read_bytes())
    opened = lambda **more: open_manifest(CorpusConfig(root=str(root), format="audioset", **more))
    assert opened(csv=".").hash == opened(csv=str(tmp_path)).hash == opened(csv="2M").hash == opened(csv=str(tmp_path/"2M")).hash
    assert len(opened(csv="20K").split("train")) == len(opened(csv=str(tmp_path/"20K")).split("train")) == 2
    chosen = opened(csv=".")["id"][5]
    (tmp_path/"ids.txt").write_text(chosen[:11])
    assert opened(csv=str(tmp_path/"ids.txt")).split("train")["id"] == [chosen]
    with pytest.raises(FileNotFoundError) as caught: opened(csv="1M")
    sentence(caught, "1M: there is no such folder; set corpus.csv to the folder of the official lists")
    with pytest.raises(FileNotFoundError) as caught: opened()
    sentence(caught, "vggsound.csv: there is no such folder; set corpus.csv to the folder of the official lists, or to '.' if they lie in corpus.root")
    with pytest.raises(FileNotFoundError) as caught: open_manifest(CorpusConfig(root=str(tmp_path/"mini"/"epic_kitchens"), format="epic_kitchens", csv="."))
    sentence(caught, "mini/epic_kitchens --corpus epic_kitchens`")
