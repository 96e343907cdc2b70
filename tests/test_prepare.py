"Preparing a corpus: whatever happens on the way, what comes out is the same, and what was lost is told."
import errno, hashlib, json, multiprocessing, os, random, signal, subprocess, sys, tarfile, threading, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch
from avmae.cli import main
from avmae.data.clips import ClipConfig, ClipDataset
from avmae.data.codec import MediaError, open_container, within_tar
from avmae.data.corpora import read_audioset
from avmae.data.crew import Crew
from avmae.data.fetch import fetch, origin
from avmae.data.info import probe
from avmae.data.loader import make_loader
from avmae.data.manifest import Manifest
from avmae.data.media import Media, read_clip, write_clip
from avmae.data.mini import write_mini_audioset, write_mini_vggsound
from avmae.data.prepare import PrepareConfig, cut_clip, estimate, plan, prepare
from avmae.data.shards import member_name, read_member, write_tar
from avmae.train.config import CorpusConfig
from avmae.train.feed import open_manifest

SMALL = PrepareConfig(short_side=32, shard_clips=6)


def film(path, seconds=1., fps=30., size=(40, 62), sound=True, seed=0):
    "Pictures of which no two are alike, and noise."
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * fps))[:, None, None, None]
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 6, generator=g) * 120, size=size, mode="bilinear")
    bar = 120 * (-((torch.arange(size[1]) - t * 1.7 % size[1]) / 3.) ** 2).exp()
    write_clip(path, (ground + bar).byte(), torch.randn(int(seconds * 44100), generator=g).clamp(-3, 3) / 8 if sound else None, fps, 44100)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    "Twenty clips in two splits, of which two are alike and some cannot be used."
    root = tmp_path_factory.mktemp("raw")
    for k in range(20): film(root/f"{k:02d}.mp4", seconds=.05 if k == 3 else 1., size=(40, 60), sound=k != 5, seed=k)
    (root/"07.mp4").write_text("<html>404: not found</html>")
    (root/"09.mp4").write_bytes((root/"12.mp4").read_bytes())
    (root/"11.mp4").unlink()
    lines = [f"{k:02d}.mp4,{'abc'[k % 3]},{'test' if k % 4 == 0 else 'train'}\n" for k in range(20)]
    (root/"labels.csv").write_text("path,label,split\n" + "".join(lines))
    return root


def contents(out: Path) -> dict[str, bytes]:
    "All files of a folder."
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")/"out"
    prepare(Manifest.from_csv(raw), out, SMALL, workers=0, progress=False)
    return out


# What comes out -------------------------------------------------------------------------------------------------------------------

def test_every_clip_is_told_about_and_only_good_ones_are_packed(raw, undisturbed):
    prepared = Manifest.load(undisturbed/"manifest.parquet")
    told = {row.id: row.status for row in prepared if row.status != "ok"}
    assert told == {"03": "too short", "05": "no audio", "07": "undecodable", "09": "duplicate", "11": "missing"}   # 12 is of the test split, so it is the one kept
    assert prepared["id"] == Manifest.from_csv(raw)["id"] and prepared.classes == ("a", "b", "c")
    assert prepared.coverage("test") == (5, 5) and prepared.coverage("train") == (11, 15)
    report = json.loads((undisturbed/"report.json").read_text())
    assert report["statuses"] == {"ok": 15, "too short": 1, "no audio": 1, "undecodable": 1, "duplicate": 1, "missing": 1}
    assert report["clips"]["duplicate"] == {"09": "its media are those of '12'"} and report["manifest"] == prepared.hash
    assert report["bytes"] == sum(path.stat().st_size for path in (undisturbed/"shards").iterdir())
    assert sorted(path.name for path in undisturbed.iterdir()) == ["ledger", "manifest.parquet", "report.json", "shards"]


def test_checking_a_prepared_corpus_keeps_what_preparing_knows(tmp_path):
    for k in range(5): film(tmp_path/f"{k}.mp4", seconds=1. if k else .05, seed=k)
    (tmp_path/"3.mp4").write_text("no media")
    paths, ends = [f"{k}.mp4" for k in (0, 1, 1, 2, 3, 9)], [None, None, 3., None, None, None]
    (tmp_path/"4.mp4").write_bytes((tmp_path/"2.mp4").read_bytes())
    listed = Manifest.from_columns(tmp_path, {"id": list("abcdef") + ["g"], "path": [*paths, "4.mp4"], "start": [None, None, 0.] + [None] * 4, "end": [*ends, None]})
    prepared = prepare(listed, tmp_path/"out", SMALL, workers=0, progress=False)
    assert prepared["status"] == ["too short", "ok", "duplicate", "ok", "undecodable", "missing", "duplicate"]
    longer = Manifest.from_columns(tmp_path, {"id": ["a"], "path": ["1.mp4"], "start": [.2], "end": [3.]})
    for table in (prepared, prepare(longer, tmp_path/"out2", SMALL, workers=0, progress=False)):
        again = table.check()
        assert [tuple(row) for row in again.take(np.array([row.status not in ("ok", "truncated") for row in table]))] == [tuple(row) for row in table if row.status not in ("ok", "truncated")]
        assert (again["status"], again["note"], again["checksum"]) == (table["status"], table["note"], table["checksum"])
    assert again["status"] == ["truncated"] and "the file ends at 1.0" in again["note"][0]
    away = prepared.root/prepared["path"][1].partition("@")[0]
    away.rename(tmp_path/"away.tar")
    assert prepared.check()["status"] == ["too short", "missing", "duplicate", "missing", "undecodable", "missing", "duplicate"]   # what is gone now is said as well


def test_shards_are_in_the_layout_of_webdataset(undisturbed):
    prepared = Manifest.load(undisturbed/"manifest.parquet").readable()
    rows = {member_name(row.id): row for row in prepared}
    seen = []
    for shard in sorted((undisturbed/"shards").glob("*.tar")):
        with tarfile.open(shard, "r:") as tar: members = [(member.name, tar.extractfile(member).read()) for member in tar]
        for (video, film_bytes), (about, text) in zip(members[::2], members[1::2]):
            key = video.removesuffix(".mp4")
            assert about == f"{key}.json" and "." not in key
            assert film_bytes == read_member(undisturbed/rows[key].path)
            assert json.loads(text)["id"] == rows[key].id and json.loads(text)["labels"] == rows[key].labels and json.loads(text)["split"] == shard.name.split("-")[0]
            seen.append(key)
    assert sorted(seen) == sorted(rows)


def test_the_webdataset_library_reads_them(undisturbed):
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted((undisturbed/"shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert sorted(json.loads(sample["json"])["id"] for sample in samples) == sorted(Manifest.load(undisturbed/"manifest.parquet").readable()["id"])
    assert all(sample["mp4"][4:8] == b"ftyp" for sample in samples)


def test_prepared_clips_are_what_was_asked_for(undisturbed):
    prepared = Manifest.load(undisturbed/"manifest.parquet").readable()
    for row, entry in enumerate(prepared):
        info = probe(prepared.file(row), thorough=True)
        assert (info.video.codec, info.video.fps, info.video.height, info.video.width) == ("h264", 25., 32, 48)
        assert (info.audio is None) == (entry.status == "no audio") and (info.audio is None or info.audio[:3] == ("aac", 16000, 1))
        with open_container(prepared.file(row)) as container:
            keys = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.is_keyframe]
        assert max(np.diff([*map(float, keys), 1.])) <= 1
        assert prepared.within(row) == (0., pytest.approx(1., abs=.05))   # the sound of the source may be a few samples longer


def test_small_pictures_are_not_enlarged_and_odd_sides_lose_a_pixel(tmp_path):
    film(tmp_path/"a.mp4", size=(30, 50))
    cut_clip(tmp_path/"a.mp4", tmp_path/"b.mp4", config=PrepareConfig(short_side=64))
    assert probe(tmp_path/"b.mp4").video[2:4] == (50, 30)
    long, short = read_clip(tmp_path/"a.mp4", frames=8, stride=3), read_clip(tmp_path/"b.mp4", frames=8, stride=3)
    assert (long.video.float() - short.video.float()).abs().mean() < 3
    with pytest.raises(ValueError, match="short_side must be even"): PrepareConfig(short_side=63)


@pytest.mark.parametrize("start, end, status, note", [
    (None, None, "ok", ""), (.5, 1.5, "ok", ""), (1.2, 2.2, "ok", ""), (1., 3.5, "truncated", "1.00 s of it are there, the file ends at 2.00 s"),
    (5., 6., "too short", "the clip lasts 0.00 s, the file ends at 2.00 s")])
def test_clips_within_longer_files(tmp_path, start, end, status, note):
    film(tmp_path/"long.mp4", seconds=2.)
    try: facts = cut_clip(tmp_path/"long.mp4", tmp_path/"cut.mp4", start, end, SMALL)
    except MediaError as error: facts = {"status": error.reason, "note": error.detail}
    assert facts["status"] == status and facts["note"] == note.replace("2.00 s", f"{Media(tmp_path/'long.mp4').duration:.2f} s")
    if status == "too short": return
    whole = read_clip(tmp_path/"long.mp4", start=start or 0., frames=5, stride=4, short_side=32)
    part = read_clip(tmp_path/"cut.mp4", frames=5, stride=4)
    assert (whole.video[..., :48].float() - part.video.float()).abs().mean() < 4
    sound = torch.nn.functional.conv1d(torch.stack([whole.waveform, part.waveform])[:, None], torch.ones(1, 1, 5) / 5)   # AAC keeps what is low
    assert torch.corrcoef(sound[:, 0])[0, 1] > .9


def test_long_clips_travel_in_parts(tmp_path):
    write_clip(tmp_path/"long.mp4", torch.arange(90, dtype=torch.uint8)[:, None, None, None].mul(2).expand(-1, 3, 16, 16), None, fps=4)
    cut_clip(tmp_path/"long.mp4", tmp_path/"cut.mp4", config=PrepareConfig(fps=4, gop=8))   # 22.5 s in parts of 10 s
    with Media(tmp_path/"cut.mp4") as media: levels = media.video(np.arange(90) / 4).float().mean((1, 2, 3))
    assert (levels - 2 * torch.arange(90)).abs().max() < 3


def test_two_annotations_of_one_place_are_no_duplicates(tmp_path):
    film(tmp_path/"a.mp4", seconds=2.)
    listed = Manifest.from_columns(tmp_path, {"id": ["1", "2", "3"], "path": ["a.mp4"] * 3, "start": [0., 0., 1.], "end": [1., 1., 2.], "labels": [["cut"], ["hold"], ["cut"]]})
    assert prepare(listed, tmp_path/"out", SMALL, workers=0, progress=False)["status"] == ["ok"] * 3
    twice = Manifest.from_columns(tmp_path, {"id": ["1", "2"], "path": ["a.mp4", "./a.mp4"]})
    assert prepare(twice, tmp_path/"once", SMALL, workers=0, progress=False)["status"] == ["ok", "duplicate"]
    assert prepare(twice, tmp_path/"both", PrepareConfig(short_side=32, keep_duplicates=True), workers=0, progress=False)["status"] == ["ok", "ok"]


def test_ids_of_any_kind_become_names(tmp_path):
    ids = ["a.b/c", "a%2Eb", "über film", "x" * 150, "../up"]
    for k in range(len(ids)): film(tmp_path/f"{k}.mp4", seconds=.3, seed=k)
    listed = Manifest.from_columns(tmp_path, {"id": ids, "path": [f"{k}.mp4" for k in range(len(ids))], "split": ["my split"] * len(ids)})
    prepared = prepare(listed, tmp_path/"out", SMALL, workers=0, progress=False)
    assert prepared["status"] == ["ok"] * len(ids) and len({member_name(id) for id in ids}) == len(ids)
    assert all(probe(prepared.file(row)).status == "ok" for row in range(len(ids)))


# Whatever happens -----------------------------------------------------------------------------------------------------------------

def killed_after(seconds, raw, out, workers=0) -> bool:
    "Prepare in another process and kill it after so long; whether it had finished by itself."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avmae.data.prepare"])
    process = context.Process(target=prepare, args=(Manifest.from_csv(raw), out, SMALL), kwargs={"workers": workers, "progress": False})
    process.start()
    process.join(seconds)
    finished = process.exitcode == 0
    if process.is_alive(): os.kill(process.pid, signal.SIGKILL)
    process.join()
    return finished


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a way to kill")
def test_killed_at_any_moment_it_goes_on_and_gives_the_same_bytes(raw, undisturbed, tmp_path):
    moments = random.Random(0)
    for name in ("warm", "timed"):   # the server of processes has to import the package first
        start = time.perf_counter()
        assert killed_after(60, raw, tmp_path/name)
    needed, calls = time.perf_counter() - start, 0
    for attempt in range(4):
        out, calls = tmp_path/f"out{attempt}", 1
        while not killed_after(needed * moments.uniform(.1, .5) * (1 + calls / 10), raw, out): calls += 1
        assert contents(out) == contents(undisturbed) == contents(tmp_path/"warm")
        if calls > 3: break
        needed /= 2   # what was timed was slower than it is now
    assert calls > 3, "it was hardly ever killed"


def test_several_processes_give_the_same_bytes_and_a_killed_call_leaves_no_process(raw, undisturbed, tmp_path):
    command = f"""
from avmae.data.prepare import PrepareConfig, prepare
from avmae.data.manifest import Manifest
if __name__ == "__main__": prepare(Manifest.from_csv({str(raw)!r}), {str(tmp_path/'out')!r}, PrepareConfig(short_side=32, shard_clips=6), workers=2)
"""
    (tmp_path/"call.py").write_text(command)
    process = subprocess.Popen([sys.executable, tmp_path/"call.py"], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path/"out").glob("work/*/*.json")): time.sleep(.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.kill()
    process.wait()
    gone = lambda pid: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    for _ in range(200):
        if all(map(gone, workers)): break
        time.sleep(.05)
    assert all(map(gone, workers))
    prepare(Manifest.from_csv(raw), tmp_path/"out", SMALL, workers=2, progress=False)
    assert contents(tmp_path/"out") == contents(undisturbed)


def test_a_finished_call_has_nothing_to_do(raw, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.tar")} | {undisturbed/"manifest.parquet": (undisturbed/"manifest.parquet").stat().st_mtime_ns}
    start = time.perf_counter()
    prepare(Manifest.from_csv(raw), undisturbed, SMALL, workers=2, progress=False)
    assert time.perf_counter() - start < 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_files_that_turn_up_later_are_taken_in(tmp_path):
    for k in range(8): film(tmp_path/f"{k}.mp4", seconds=.3, seed=k % 7)   # 7 is 0 again
    listed = Manifest.from_columns(tmp_path, {"id": list("01234567"), "path": [f"{k}.mp4" for k in range(8)]})
    whole, config = tmp_path/"whole", PrepareConfig(short_side=32, shard_clips=3)
    prepare(listed, whole, config, workers=0, progress=False)
    assert Manifest.load(whole/"manifest.parquet")["status"] == ["ok"] * 7 + ["duplicate"]
    for k in (0, 4): (tmp_path/f"{k}.mp4").rename(tmp_path/f"{k}.away")
    assert prepare(listed, tmp_path/"later", config, workers=0, progress=False)["status"] == ["missing", "ok", "ok", "ok", "missing", "ok", "ok", "ok"]
    for k in (0, 4): (tmp_path/f"{k}.away").rename(tmp_path/f"{k}.mp4")
    prepare(listed, tmp_path/"later", config, workers=0, progress=False)
    assert contents(tmp_path/"later") == contents(whole)


@pytest.fixture
def tiny_disk(tmp_path):
    "A disk of a given size, and a way to enlarge it; skipped where one may not mount."
    place = tmp_path/"disk"
    place.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", place], capture_output=True).returncode: pytest.skip("not allowed to mount")
    yield place, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    subprocess.run(["umount", place])


def test_the_clock_of_a_job_starts_when_its_process_is_ready():
    "A new process imports for seconds, which is not the fault of the file that it is given first."
    job = partial(time.sleep, .01)
    job.limit = .25   # s; torch alone takes longer
    left = iter([job])
    with Crew(1) as crew: assert list(crew.work_off(lambda: next(left, None))) == [(job, None)]


def test_a_full_disk_stops_it_and_loses_nothing(raw, undisturbed, tiny_disk):
    place, enlarge = tiny_disk
    for size in ("80k", "120k", "200k", "300k"):   # full in clips, facts, shards
        try: prepare(Manifest.from_csv(raw), place/"out", SMALL, workers=0, progress=False)
        except OSError as error: assert error.errno == errno.ENOSPC and str(place) in str(error.filename)
        assert not list(place.rglob("*.partial"))
        enlarge(size)
    enlarge("20m")
    prepare(Manifest.from_csv(raw), place/"out", SMALL, workers=0, progress=False)
    assert contents(place/"out") == contents(undisturbed)


def test_a_full_disk_is_one_sentence(raw, tmp_path, monkeypatch, capsys):
    def full(path, *rest, **more): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{path}.partial")
    monkeypatch.setattr("avmae.data.cut.write_clip", full)
    monkeypatch.setattr("avmae.data.prepare.Crew.__init__", lambda self, workers: setattr(self, "workers", []))
    status = main(["prepare", str(raw), str(tmp_path/"out"), "--format", "csv"])
    assert status == 1 and "the disk is full; make room and run the same command again" in capsys.readouterr().err.splitlines()[-1]


def test_two_at_a_time_and_other_settings_are_refused(raw, undisturbed, tmp_path):
    with pytest.raises(ValueError, match="holds clips with fps=25.0, not 5"): prepare(Manifest.from_csv(raw), undisturbed, PrepareConfig(short_side=32, shard_clips=6, fps=5))
    with pytest.raises(ValueError, match="the clips of another list"): prepare(Manifest.from_csv(raw).split("test"), undisturbed, SMALL)
    fcntl = pytest.importorskip("fcntl")
    with open(undisturbed/"ledger"/"lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process prepares clips"): prepare(Manifest.from_csv(raw), undisturbed, SMALL)


# Reading --------------------------------------------------------------------------------------------------------------------------

CONFIG = ClipConfig(frames=4, stride=4, resize=32, size=30, samples=4000)


def test_plain_and_packed_give_the_same_samples_in_any_order(raw, undisturbed):
    packed = ClipDataset(open_manifest(CorpusConfig(root=str(undisturbed), format="manifest", csv="manifest.parquet")), CONFIG, train=True)
    plain = ClipDataset(open_manifest(CorpusConfig(root=str(raw), format="csv", csv="labels.csv")), CONFIG, train=True)
    number = {plain.id(index): index for index in range(len(plain))}
    for index in random.Random(1).sample(range(len(packed)), len(packed)):
        a, b = packed[3, index], plain[3, number[packed.id(index)]]
        assert a.labels == b.labels and a.video.shape == b.video.shape and (a.waveform is None) == (b.waveform is None)
        assert (a.video.float() - b.video.float()).abs().mean() < 6


def test_checksums_are_those_of_the_packed_clips(undisturbed):
    manifest = Manifest.load(undisturbed/"manifest.parquet", undisturbed)
    readable = manifest.readable()
    for row in readable.check(checksum=True): assert row.checksum == hashlib.sha256(read_member(undisturbed/row.path)).hexdigest()


def test_worker_processes_read_shards(undisturbed):
    data = ClipDataset(Manifest.load(undisturbed/"manifest.parquet"), CONFIG, train=True)
    alone, several = ([(batch.ids, batch.video, batch.audio) for batch in make_loader(data, 4, workers=workers, steps=6)] for workers in (0, 2))
    for (ids, video, audio), (ids2, video2, audio2) in zip(alone, several): assert ids == ids2 and torch.equal(video, video2) and torch.equal(audio, audio2)
    cached = ClipDataset(Manifest.load(undisturbed/"manifest.parquet"), CONFIG, train=True, cache=True, progress=False)
    assert all(torch.equal(cached[1, k].video, data[1, k].video) for k in range(len(data)))


def test_no_file_stays_open(undisturbed):
    if not Path("/proc/self/fd").is_dir(): pytest.skip("cannot count open files here")
    data = ClipDataset(Manifest.load(undisturbed/"manifest.parquet"), CONFIG, train=True)
    data[0, 0]
    before = len(os.listdir("/proc/self/fd"))
    for k in range(len(data)): data[1, k]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_within_a_tar(tmp_path):
    film(tmp_path/"a.mp4")
    place = tmp_path/"my, odd:folder"
    place.mkdir()
    (first, size), = write_tar(place/"b.tar", [("a.mp4", tmp_path/"a.mp4")]).values()
    path = place/f"b.tar@{first}+{size}"
    assert within_tar(path) == (place/"b.tar", first, size) and within_tar(place/"b.tar") is None and within_tar("x.tar@1") is None
    assert torch.equal(read_clip(path).video, read_clip(tmp_path/"a.mp4").video)
    os.truncate(place/"b.tar", first + size - 1)
    with pytest.raises(MediaError, match="the tar ends before this file does"): probe(path)
    (place/"b.tar").unlink()
    with pytest.raises(MediaError, match="there is no such file"): probe(path)


def test_subsets_of_a_prepared_audioset_share_its_shards(tmp_path):
    root, out = write_mini_audioset(tmp_path/"raw", train=12, test=3, processes=1), tmp_path/"out"
    config = dict(format="audioset", root=str(root))
    whole = prepare(open_manifest(CorpusConfig(csv="2M", **config)), out, SMALL, workers=0, progress=False)
    before = contents(out/"shards")
    (root/"ids.txt").write_text("\n".join(id[:11] for id in whole.split("train")["id"][5:8]))
    for subset, clips in (("20K", 2), (root/"ids.txt", 3)):
        whole.listed_in(read_audioset(root, out, subset)).save(out/"manifest-part.parquet")
        part = open_manifest(CorpusConfig(root=str(out), format="manifest", csv="manifest-part.parquet"))
        raw = open_manifest(CorpusConfig(csv=str(subset), **config))
        assert (part["id"], part["labels"], part["split"], part.classes) == (raw["id"], raw["labels"], raw["split"], raw.classes)
        assert (part.coverage("train"), part.coverage("test")) == ((clips, clips), (3, 3))
        assert ClipDataset(part, CONFIG, train=True, multilabel=True)[0, 0].video.shape == (4, 3, 30, 30)
    assert contents(out/"shards") == before and Manifest.load(out/"manifest.parquet").hash == whole.hash
    with pytest.raises(ValueError, match=r"10 of the 15 clips asked for are not listed here, such as '.*'; prepare a list that has them"): whole.listed_in(read_audioset(root, out, "20K")).listed_in(whole)


# Before and around ----------------------------------------------------------------------------------------------------------------

def test_a_dry_run_writes_nothing_and_comes_close(raw, undisturbed, tmp_path, capsys):
    before = contents(raw)
    told = estimate(Manifest.from_csv(raw), tmp_path/"out", SMALL, workers=1)
    assert (told.listed, told.there) == (20, 19) and not (tmp_path/"out").exists() and contents(raw) == before
    assert .5 < told.size / json.loads((undisturbed/"report.json").read_text())["bytes"] < 2
    assert main(["prepare", str(raw), str(tmp_path/"out"), "--format", "csv", "--dry-run"]) == 0
    assert "19 of 20 clips are there. Judging by" in capsys.readouterr().out and not (tmp_path/"out").exists()


def test_shards_follow_from_the_list_alone():
    listed = Manifest.from_columns(".", {"id": list("abcdefg"), "path": ["x"] * 7, "split": ["train", "test", "train", "valid", "train", "train", "train"]})
    assert [(shard.name, shard.rows.tolist()) for shard in plan(listed, 2)] == [("test-00000", [1]), ("valid-00000", [3]), ("train-00000", [0, 2]), ("train-00001", [4, 5]), ("train-00002", [6])]


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mini_vggsound(tmp_path/"mini", train=4, test=2, processes=1)
    monkeypatch.setattr("avmae.data.prepare.Crew.__init__", lambda self, workers: setattr(self, "workers", []))
    assert main(["prepare", "mini", "out", "--short-side", "64", "--workers", "1"]) == 0
    assert "train: 4 of 4 clips can be read" in capsys.readouterr().out
    packed = ["--corpus.root", "out", "--corpus.format", "manifest", "--corpus.csv", "manifest.parquet"]
    assert main(["statistics", "mini_vggsound_pretrain", *packed]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path/"out"/"statistics.json").read_text())
    assert f"--frontend.mean {found['mean']:.6g} --frontend.std {found['std']:.6g}" in said and "4 of 4 training clips" in said
    assert main(["prepare", "mini", "out2", "--form", "csv"]) == 2 and "did you mean 'format'" in capsys.readouterr().err
    assert main(["statistics", "mini_vggsound_pretrian"]) == 2


# Downloading ----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def site(tmp_path, monkeypatch):
    "A web site on this machine that has two films, and nothing else."
    pytest.importorskip("yt_dlp")
    for name in ("no_proxy", "NO_PROXY"): monkeypatch.setenv(name, "127.0.0.1")
    folder = tmp_path/"site"
    folder.mkdir()
    film(folder/"AbCdEfGhIjK.mp4", seconds=13., fps=5.)
    film(folder/"ZbCdEfGhIjK.mp4", seconds=2., fps=5., seed=1)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{{video}}.mp4"
    server.shutdown()
    server.server_close()


def test_missing_videos_are_fetched_cut_and_not_kept(site, tmp_path):
    (tmp_path/"raw").mkdir()
    (tmp_path/"raw"/"vggsound.csv").write_text("AbCdEfGhIjK,2,a,train\nZbCdEfGhIjK,0,b,train\nnowhere-at-,5,b,test\n")
    listed = open_manifest(CorpusConfig(root=str(tmp_path/"raw")))
    before = prepare(listed, tmp_path/"out", SMALL, workers=0, progress=False)
    assert before["status"] == ["missing"] * 3
    prepared = prepare(listed, tmp_path/"out", SMALL, workers=0, progress=False, download=site)
    assert prepared["status"] == ["ok", "truncated", "missing"] and "the download failed (" in prepared["note"][2] and "404" in prepared["note"][2]
    assert prepared["duration"][0] == pytest.approx(10.)
    source = read_clip(tmp_path/"site"/"AbCdEfGhIjK.mp4", start=2., frames=4, stride=25, short_side=32)
    assert (read_clip(prepared.file(0), frames=4, stride=25).video.float() - source.video[..., :48].float()).abs().mean() < 4
    assert not list((tmp_path/"raw").rglob("*.mp4")) and not (tmp_path/"out"/"work").exists()
    with pytest.raises(ValueError, match="must have {video} in it"): prepare(listed, tmp_path/"out", SMALL, download="http://127.0.0.1/")


def test_downloading_without_the_extra_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "yt_dlp", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'avmae\[download\]'"): fetch("http://127.0.0.1/x", tmp_path)
