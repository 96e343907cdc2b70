"A folder of videos becomes a classifier: which folders are understood, how they are split, and the whole notebook on generated videos in five containers."
import json, os, shutil, subprocess, sys
from collections import Counter
from pathlib import Path
import av, numpy as np, papermill, pytest, torch
from avmae.data.codec import write_clip
from avmae.data.corpora import read_folder, split_by_class
from avmae.data.manifest import Manifest
from avmae.data.scenes import FPS, RATE, Thing, background, onsets, render_scene, render_sounds

ROOT = Path(__file__).parents[1]
GRID = Path(os.environ.get("AVMAE_GRID_DIR", ROOT.parent/"shared"/"corpora"/"grid"))
CLASSES = {"hand bells": ("banded", "ringing"), "Motoren, laut": ("slanted", "humming")}

def place(root, *names):
    "Files of these names, with nothing in them."
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).touch()


# ---- the folder

def test_the_folder_at_the_top_is_the_class(tmp_path):
    place(tmp_path, "dogs/a.mp4", "dogs/deep/er/b.MKV", "dogs/c.wmv", "cats, wild/a.mp4", "cats, wild/.hidden.mp4", "cats, wild/read me.txt", "empty/notes.md")
    found = read_folder(tmp_path)
    assert [(row.id, row.path, row.labels) for row in found] == [
        ("cats, wild/a", "cats, wild/a.mp4", ["cats, wild"]), ("dogs/a", "dogs/a.mp4", ["dogs"]), ("dogs/c", "dogs/c.wmv", ["dogs"]), ("dogs/deep/er/b", "dogs/deep/er/b.MKV", ["dogs"])]
    assert found.classes == ("cats, wild", "dogs") and found.splits == ("train",)

def test_two_files_with_one_name_are_both_kept(tmp_path):
    place(tmp_path, "x/a.mov", "x/a.mp4", "y/a.mp4")
    assert read_folder(tmp_path)["id"] == ["x/a.mov", "x/a.mp4", "y/a"]

@pytest.mark.parametrize("names", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_folders_of_a_split_are_taken_as_they_are(tmp_path, names):
    place(tmp_path, *(f"{split}/{kind}/{k}.mp4" for split in names for kind in "ab" for k in range(2)))
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b") and Counter(found["split"]) == dict.fromkeys(names, 4)

def test_a_class_may_be_called_like_a_split(tmp_path):
    place(tmp_path, "train/a.mp4", "tram/b.mp4")
    assert read_folder(tmp_path).classes == ("train", "tram")

@pytest.mark.parametrize("names, sentence", [
    ((), "there is no video in this folder; put those of each class into a folder of its name."),
    (("notes.txt", "dogs/list.csv"), "there is no video in this folder"),
    (("dogs/a.mp4", "dogs/b/c.mp4"), "all 2 videos are of one class, 'dogs'; telling classes apart takes two or more, each in a folder of its name."),
    (("dogs/a.mp4", "cats/b.mp4", "z.mp4"), "'z.mp4' lies in no folder of a class; move it into one, or list all videos in a csv."),
    (("y.mp4", "z.mp4"), "'y.mp4' lies in no folder of a class (nor do 1 others)"),
    (("train/a/1.mp4", "test/2.mp4"), "'test/2.mp4' lies in no folder of a class")])
def test_what_is_no_corpus_is_told_in_one_sentence(tmp_path, names, sentence):
    place(tmp_path, *names)
    with pytest.raises(ValueError) as caught: read_folder(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: ") and sentence in said and "\n" not in said and said.endswith(".")

def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"): read_folder(tmp_path/"nowhere")


# ---- the split

def listed(n=40, **columns):
    "A manifest of 3 n readable clips: two thirds of class a, one third of b."
    ids = [f"{'aab'[k % 3]}/{k // 6}_{k % 6}" for k in range(3 * n)]
    return Manifest.from_columns(".", {"id": ids, "path": [f"{id}.mp4" for id in ids], "labels": [[id[0]] for id in ids], "status": ["ok"] * len(ids), **columns})

@pytest.mark.parametrize("share, expected", [(.25, {"a": 20, "b": 10}), (.1, {"a": 8, "b": 4}), (.001, {"a": 1, "b": 1}), (.999, {"a": 79, "b": 39})])
def test_each_class_gives_its_share_and_keeps_one(share, expected):
    test = split_by_class(listed(), share).split("test")
    assert Counter(row.labels[0] for row in test) == expected

def test_the_draw_follows_from_seed_and_ids_alone():
    made = listed()
    order = np.random.default_rng(0).permutation(len(made))
    first = dict(zip(made["id"], split_by_class(made)["split"]))
    assert dict(zip(made.take(order)["id"], split_by_class(made.take(order))["split"])) == first
    assert dict(zip(made["id"], split_by_class(made, seed=1)["split"])) != first

def test_copies_and_pieces_of_a_recording_stay_together():
    made = listed(checksum=[str(k % 60) for k in range(120)])   # each file twice
    halves = split_by_class(made)
    assert all(len({row.split for row in halves if row.checksum == checksum}) == 1 for checksum in set(made["checksum"]))
    recording = lambda id: id.rpartition("_")[0]
    pieces = split_by_class(listed(), source=recording)
    assert all(len({row.split for row in pieces if recording(row.id) == name}) == 1 for name in {recording(id) for id in pieces["id"]})
    assert {split: len(pieces.split(split)) for split in pieces.splits} == {"test": 30, "train": 90}

def test_a_chain_of_copies_is_one_source():
    "a and b are copies, b and c are of one recording: none of the three may part from the others, whatever the seed."
    made = listed().take(np.arange(30))
    made = made.with_columns(checksum=["same" if k in (0, 12) else str(k) for k in range(30)])
    for seed in range(8):
        split = split_by_class(made, .5, seed, source=lambda id: id if id not in ("a/2_0", "a/4_3") else "recording")["split"]
        assert split[0] == split[12] == split[27], (seed, made["id"])

def test_what_cannot_be_read_is_in_neither_half():
    made = listed(status=["undecodable", "missing", "too short", "no audio"] + ["ok"] * 116)
    found = split_by_class(made)
    assert found["split"][:3] == ["unreadable"] * 3 and "unreadable" not in found["split"][3:]
    assert found.coverage("unreadable") == (0, 3) and found.coverage("test")[0] == len(found.split("test"))

@pytest.mark.parametrize("count", [0, 1])
def test_a_class_too_small_to_divide_is_named(count):
    made = listed().take([k for k in range(60) if k % 3 < 2 or k < 3 * count])
    with pytest.raises(ValueError, match=rf"class 'b' has {count} that can be read"): split_by_class(made)

def test_a_share_must_leave_something_on_both_sides():
    for share in (0., 1., -1.):
        with pytest.raises(ValueError, match="a share between 0 and 1"): split_by_class(listed(), share)


# ---- the notebook

def scene(k: int, surface: str, sound: str) -> tuple[torch.Tensor, torch.Tensor]:
    "A video of 1 to 2 s."
    rng = np.random.default_rng(k)
    seconds = 1 + k / 10
    starts = onsets(rng, seconds)
    return (torch.from_numpy(render_scene(rng, [Thing(surface, starts)], round(seconds * FPS), background(rng))),
            torch.from_numpy(render_sounds(rng, [(sound, starts)], round(seconds * RATE))))

CODECS = {".mkv": ("libx264", "flac"), ".mov": ("mpeg4", "pcm_s16le"), ".avi": ("mpeg4", "libmp3lame"), ".webm": ("libvpx", "libopus")}

def write(target: Path, video: torch.Tensor, waveform: torch.Tensor) -> None:
    "A video in the container that its suffix names, with codecs that one finds in such files."
    with av.open(str(target), "w") as file:
        pictures, sound = (file.add_stream(CODECS[target.suffix][0], rate=FPS), file.add_stream(CODECS[target.suffix][1], rate=48_000, layout="mono"))
        pictures.height, pictures.width, pictures.pix_fmt = *video.shape[-2:], "yuv420p"
        frame = av.AudioFrame.from_ndarray(waveform.repeat_interleave(3).numpy()[None], "flt", "mono")
        frame.rate, frame.pts = 48_000, 0
        shown = [av.VideoFrame.from_ndarray(x.permute(1, 2, 0).contiguous().numpy(), "rgb24") for x in video]
        packets = [packet for stream, content in ((pictures, shown), (sound, [frame])) for one in (*content, None) for packet in stream.encode(one)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base): file.mux(packet)

@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    "Two classes of six videos in five containers, one of them without sound, and a file that is none."
    root = tmp_path_factory.mktemp("videos")
    for kind, (surface, sound) in CLASSES.items():
        (root/kind).mkdir()
        for k, suffix in enumerate((".mp4", *CODECS, ".mp4")):
            pictures, waveform = scene(k, surface, sound)
            if suffix != ".mp4": write(root/kind/f"{k}{suffix}", pictures, waveform)
            else: write_clip(root/kind/f"{k}.mp4", pictures, None if (kind, k) == ("hand bells", 5) else waveform, fps=FPS, rate=RATE)
    (root/"hand bells"/"lost.mkv").write_text("<html>gone</html>")
    (root/"notes.txt").write_text("filmed in the garden")
    return root

TINY = {"pretrain_recipe": "smoke_pretrain", "pretrain_changes": {"epochs": 1}, "finetune_recipe": "smoke_finetune", "finetune_changes": {"epochs": 2, "mixup": 0.}, "windows": 2}

def execute(folder: Path, **parameters) -> str:
    "The notebook as a user would run it; all that it printed."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        papermill.execute_notebook(str(ROOT/"nbs"/"own_corpus.ipynb"), str(folder/"executed.ipynb"), TINY | parameters, kernel_name="python3", progress_bar=False, cwd=str(folder))
    outputs = [output for cell in json.loads((folder/"executed.ipynb").read_text())["cells"] for output in cell.get("outputs", [])]
    return "\n".join("".join(output.get("text", "")) or "".join(output.get("data", {}).get("text/plain", "")) for output in outputs)

@pytest.fixture(scope="module")
def executed(videos, tmp_path_factory) -> tuple[Path, str]:
    "A folder in which the notebook has run with `work` as its folder, and what was printed."
    folder = tmp_path_factory.mktemp("once")
    return folder, execute(folder, videos=str(videos), work="work", test=.3, seed=3)

def table_of(folder: Path) -> Manifest:
    "The table that the notebook saved."
    [path] = (folder/"work").glob("*/videos.parquet")
    return Manifest.load(path)

def test_halves_are_disjoint_and_the_broken_file_is_named_in_neither(executed):
    folder, printed = executed
    table = table_of(folder)
    assert Counter(table["split"]) == {"train": 8, "test": 4, "unreadable": 1}
    assert table.split("unreadable")["id"] == ["hand bells/lost"] and table.coverage("unreadable") == (0, 1)
    train, test = table.split("train"), table.split("test")
    assert not set(train["path"]) & set(test["path"]) and not set(train["checksum"]) & set(test["checksum"])
    assert {row.labels[0] for row in train} == {row.labels[0] for row in test} == set(CLASSES)
    assert "hand bells/lost: the file cannot be opened as media" in printed and "hand bells/lost could not (undecodable)" in printed
    assert "hand bells/5: there is no audio stream" in printed and "4 of 4 test videos could be read, 8 of 8 training videos" in printed

def test_the_record_tells_of_every_file(executed):
    folder, _ = executed
    record = json.loads(next((folder/"work").glob("*/finetuned/run.json")).read_text())
    assert record["manifest"]["coverage"] == {"test": [4, 4], "train": [8, 8], "unreadable": [0, 1]} and record["skipped"] == 0
    assert (record["result"]["clips"], record["result"]["windows"]) == (4, 2)
    assert record["init_weights"] == json.loads(next((folder/"work").glob("*/pretrained/run.json")).read_text())["weights"]
    scratch = json.loads((next((folder/"work").glob("*/scratch"))/"run.json").read_text())
    assert scratch["init_weights"] is None and scratch["config"] | {"init_from": record["config"]["init_from"]} == record["config"]

def test_statistics_of_the_videos_are_in_both_runs_and_in_what_is_saved(executed):
    folder, printed = executed
    configs = [json.loads(next((folder/"work").glob(pattern)).read_text()) for pattern in ("*/pretrained/config.json", "*/finetuned/config.json")]
    heard = [config["recipe"]["frontend"] for config in configs] + [json.loads((folder/"work"/"classifier"/"config.json").read_text())["frontend"]]
    assert heard[0] == heard[1] == heard[2] and (heard[0]["mean"], heard[0]["std"]) != (0., 1.)
    assert f"--frontend.mean {heard[0]['mean']:.6g} --frontend.std {heard[0]['std']:.6g}" in printed

def test_the_saved_classifier_knows_its_labels_in_another_process(executed, videos, tmp_path):
    moved = shutil.copytree(executed[0]/"work"/"classifier", tmp_path/"classifier")
    code = ("import avmae, json; found, = avmae.load('classifier', device='cpu').predict([__import__('sys').argv[1]], progress=False); "
            "print(json.dumps([found.labels, found.probabilities.tolist(), found.top(1)[0][0]]))")
    done = subprocess.run([sys.executable, "-c", code, str(videos/"hand bells"/"1.mkv")], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels, probabilities, best = json.loads(done.stdout)
    assert labels == sorted(CLASSES) and sum(probabilities) == pytest.approx(1, abs=1e-5) and best in CLASSES
    card = (moved/"README.md").read_text()
    assert "hand bells" in card and "0 of 1 unreadable clips could be read" in card

def test_executed_again_it_goes_on_from_what_there_is(executed, videos):
    folder, _ = executed
    weights = {path: path.stat().st_mtime_ns for path in (folder/"work").glob("*/*/model.safetensors")}
    shutil.rmtree(next((folder/"work").glob("*/finetuned")))   # as if it had been stopped before
    execute(folder, videos=str(videos), work="work", test=.3, seed=3)
    now = {path: path.stat().st_mtime_ns for path in (folder/"work").glob("*/*/model.safetensors")}
    assert now.keys() == weights.keys() and sorted(path.parent.name for path in now) == ["finetuned", "pretrained", "scratch"]
    assert sorted(path.parent.name for path in now if now[path] == weights[path]) == ["pretrained", "scratch"]

def test_given_weights_given_halves_and_transcoded_videos(executed, videos, tmp_path):
    for kind in CLASSES:
        for k in range(6):
            [path] = (videos/kind).glob(f"{k}.*")
            place(tmp_path, f"halves/{'test' if k % 3 == 2 else 'train'}/{kind}/{path.name}")
            shutil.copy(path, tmp_path/"halves"/("test" if k % 3 == 2 else "train")/kind/path.name)
    pretrained = next((executed[0]/"work").glob("*/pretrained"))
    printed = execute(tmp_path, videos="halves", work="work", init_from=str(pretrained), prepared=True, scratch=False)
    record = json.loads(next((tmp_path/"work").glob("*/finetuned/run.json")).read_text())
    assert record["init_weights"] == json.loads((pretrained/"run.json").read_text())["weights"] and not [*(tmp_path/"work").glob("*/pretrained"), *(tmp_path/"work").glob("*/scratch")]
    assert record["config"]["frontend"] == json.loads((pretrained/"run.json").read_text())["config"]["frontend"]
    assert record["manifest"]["coverage"] == {"test": [4, 4], "train": [8, 8]} and record["config"]["corpus"]["csv"] == "manifest.parquet"
    assert "4 of 4 test videos could be read" in printed

def test_the_same_file_in_both_given_halves_is_refused_by_name(videos, tmp_path):
    for name in ("train/hand bells/a.mp4", "train/x/b.mp4", "test/hand bells/c.mp4"): place(tmp_path, f"halves/{name}")
    for name in ("train/hand bells/a.mp4", "test/hand bells/c.mp4"): shutil.copy(videos/"hand bells"/"0.mp4", tmp_path/"halves"/name)
    shutil.copy(videos/"Motoren, laut"/"0.mp4", tmp_path/"halves/train/x/b.mp4")
    with pytest.raises(papermill.PapermillExecutionError) as caught: execute(tmp_path, videos="halves", work="work")
    assert "'test/hand bells/c' and 'train/hand bells/a' are the same file, in test and in train; delete one of them." in caught.value.evalue


@pytest.mark.skipif(not (GRID/"labels.csv").is_file(), reason="the GRID corpus is not here; AVMAE_GRID_DIR names its folder")
def test_real_recordings(tmp_path):
    lines = [line.split(",") for line in (GRID/"labels.csv").read_text().splitlines()[1:]]
    for command in ("bin", "lay", "place", "set"):
        (tmp_path/"words"/command).mkdir(parents=True)
        for file in [line[0] for line in lines if line[2] == command][:5]: (tmp_path/"words"/command/Path(file).name).symlink_to(GRID/file)
    printed = execute(tmp_path, videos="words", work="work", scratch=False)
    assert "4 of 4 test videos could be read, 16 of 16 training videos" in printed
