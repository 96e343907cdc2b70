"Whatever a file holds: it is read, or a sentence says why not, within ten seconds, and nothing is left behind. Every file is read in a process of its own, as preparing does it."
import csv, io, os, random, resource, struct, sys, tempfile
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
import av, numpy as np, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from avmae.data.clips import ClipConfig, ClipDataset
from avmae.data.codec import MediaError
from avmae.data.corpora import read_audioset, read_epic_kitchens, read_vggsound
from avmae.data.crew import Crew, Lost
from avmae.data.info import probe
from avmae.data.manifest import Manifest
from avmae.data.media import read_audio, read_video
from avmae.data.prepare import PrepareConfig, cut_clip

SHARED = Path(__file__).parents[1] / "../shared"
CLIPS = SHARED / "clips"
LIMIT = 10.   # s for one file
SMALL = ClipConfig(frames=4, resize=40, size=32, samples=8000)


def manifest_of(path): return Manifest.from_columns(path.parent, {"id": ["clip"], "path": [path.name], "status": ["found"]})

def told(read) -> str:
    "What came of it in a word: ok, or the reason of a `MediaError`; any other exception is passed on."
    try: read()
    except MediaError as error:
        assert str(error) and "\n" not in error.detail and error.reason in ("missing", "undecodable", "no video", "no audio", "too short")
        return error.reason
    return "ok"

def train(path, epochs=4, config=SMALL):
    "Random windows, as training reads them."
    data = ClipDataset(manifest_of(path), config, train=True, progress=False)
    for epoch in range(epochs):
        sample = data[epoch, 0]
        assert sample.video is None or sample.video.shape == (config.frames, 3, config.size, config.size)
        assert sample.waveform is None or sample.waveform.shape == (config.samples,) and sample.waveform.isfinite().all()

def spread(path):
    "The windows of an evaluation."
    data = ClipDataset(manifest_of(path), ClipConfig(frames=4, resize=40, size=32, samples=8000, windows=3), train=False, progress=False)
    for window in range(3): data[window]

def cut(path, start=None, end=None):
    "What preparing does."
    with tempfile.TemporaryDirectory() as folder: cut_clip(path, Path(folder) / "clip.mp4", start, end, PrepareConfig(short_side=32))

def held(path): ClipDataset(manifest_of(path), SMALL, train=True, cache=True, progress=False)

def thorough(path): probe(path, thorough=True)

def open_below(folder) -> list[str]:
    "The files below a folder that this process has open."
    if not os.path.isdir("/proc/self/fd"): return []
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link) and os.readlink(link).startswith(f"{Path(folder).resolve()}/")]


WAYS = {"probe": probe, "train": train, "spread": spread, "thorough": thorough, "cut": cut, "part": lambda path: cut(path, .2, .9)}

@dataclass(frozen=True)
class Reading:
    "A job: read a file in one way; returns what came of it, its facts, and the files that stay open."
    path: Path
    way: str
    limit: float = LIMIT

    def __call__(self): return told(lambda: WAYS[self.way](self.path)), facts(self.path) if self.way == "probe" else None, open_below(self.path.parent)

def facts(path):
    "(status, duration, short side, long side, sampling rate, channels) of a file that can be opened."
    try: info = probe(path)
    except MediaError: return None
    return info.status, info.duration, *(sorted(info.video[2:4]) if info.video else (0, 0)), *(info.audio[1:] if info.audio else (0, 0))

def megabytes() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def read_all(jobs) -> dict:
    "{job: result}. What takes too long gets a second chance, since another program may have taken the cores; a crash gets none."
    results = worked_off(jobs, 2)
    return results | worked_off([job for job, result in results.items() if isinstance(result, Lost) and "took longer" in result.detail], 1)

def worked_off(jobs, workers):
    jobs = iter(jobs)
    with Crew(workers) as crew: return dict(crew.work_off(lambda: next(jobs, None)))


# Files that nobody here made ------------------------------------------------------------------------------------------------------

def listed() -> list[dict]:
    if not (CLIPS / "index.csv").is_file(): return []
    with open(CLIPS / "index.csv", newline="") as rows: return list(csv.DictReader(rows))

@pytest.fixture(scope="module")
def readings():
    "{file: {way: what came of it}}, and {file: facts}."
    came, found = {row["file"]: {} for row in listed()}, {}
    for job, result in read_all(Reading(CLIPS / row["file"], way) for row in listed() for way in WAYS).items():
        assert not isinstance(result, Lost), (job, result)
        came[job.path.name][job.way], about, opened = result
        found[job.path.name] = about or found.get(job.path.name)
        assert not opened, (job, "a file stays open")
    return came, found

def dead(row) -> bool:
    "Whether the file, or one of its streams, holds nothing that decodes, by its row of the list."
    silent, blind = row["acodec"] and not float(row["a_seconds"] or 0), row["vcodec"] and not int(row["v_frames"] or 0)
    return row["decode_error"].startswith("OPEN") or "InvalidDataError" in row["decode_error"] and bool(silent or blind)

@pytest.mark.parametrize("row", listed(), ids=lambda row: row["file"])
def test_odd_file_is_read_or_the_reason_is_told(row, readings):
    came, found = readings[0][row["file"]], readings[1][row["file"]]
    if dead(row): assert set(came.values()) == {"undecodable"} and found is None
    elif "InvalidDataError" in row["decode_error"]: assert came["probe"] == "ok" and ("undecodable" in came.values() or found[0] == "truncated")
    else:
        short = {way for way, least in (("cut", .1), ("part", .3)) if float(row["duration_s"]) < least}
        assert came == {way: "too short" if way in short else "ok" for way in WAYS}

WIDER = {"Shepard_Calais_1906_FrenchGP.ogv.160p.ogv": 218}   # the header says 214, which is what the list has; the pictures that come out of the decoder are wider

@pytest.mark.parametrize("row", [row for row in listed() if not dead(row)], ids=lambda row: row["file"])
def test_odd_file_is_what_the_list_says(row, readings):
    status, duration, short, long, rate, channels = readings[1][row["file"]]
    number = lambda key: float(row[key] or 0)
    expected = "no video" if not row["vcodec"] else "no audio" if not row["acodec"] else "truncated" if row["oddity"].startswith("DERIVED: cut") else "ok"
    assert status == expected
    wide = WIDER.get(row["file"], number("width"))
    assert [short, long] == sorted([wide, number("height")]) and (rate, channels) == (number("audio_rate"), number("audio_ch"))
    if expected != "truncated" and row["decode_error"] == "": assert abs(duration - max(number("duration_s"), number("a_seconds"))) < .15


# Generated files ------------------------------------------------------------------------------------------------------------------

def sound(rate=44100, channels=2, seconds=1.):
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([.3 * np.sin(2 * np.pi * (300 + 110 * k) * t) for k in range(channels)])

def picture(k, width=48, height=32):
    y, x = np.mgrid[:height, :width]
    return np.stack([(5 * x + 9 * k) % 256, (7 * y + 3 * k) % 256, 0 * x + 10 * k % 256], -1).astype(np.uint8)

def write_film(path, video=None, audio=None, *, frames=16, fps=16, size=(48, 32), pixels="yuv420p", options=None, rate=44100, layout="stereo", samples="fltp",
               video_options=None, seconds=1., pictures=None, grid=Fraction(1, 1000), **more) -> Path:
    "Any container and codecs; `pictures`: {tick of `grid`: number} where the frame rate is not even."
    with av.open(str(path), "w", options=options or {}, **more) as out:
        streams, packets = [], []
        if video:
            stream = out.add_stream(video, rate=fps, options=video_options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            if pictures: stream.codec_context.time_base = grid
            streams.append((stream, _pictures(stream, pictures or dict.fromkeys(range(frames)), size, grid if pictures else 1 / Fraction(fps))))
        if audio:
            stream = out.add_stream(audio, rate=rate, layout=layout)
            stream.bit_rate = 64_000
            streams.append((stream, _sounds(stream, rate, layout, samples, seconds)))
        for stream, frames_of in streams:
            for frame in [*frames_of, None]: packets += stream.encode(frame)
        out.start_encoding()
        for packet in sorted((p for p in packets if p.dts is not None), key=lambda p: p.dts * p.time_base): out.mux(packet)
    return Path(path)

def _pictures(stream, ticks, size, grid):
    for k, tick in enumerate(ticks):
        frame = av.VideoFrame.from_ndarray(picture(k, *size), format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = tick, grid
        yield frame

def _sounds(stream, rate, layout, samples, seconds):
    channels, step = av.AudioLayout(layout).nb_channels, stream.codec_context.frame_size or 1024
    whole = sound(rate, channels, seconds)
    kind = {"fltp": np.float32, "flt": np.float32, "s16": np.int16, "s16p": np.int16, "s32": np.int32, "s32p": np.int32, "u8": np.uint8, "dbl": np.float64}[samples]
    scale = {np.int16: 32767, np.int32: 2 ** 31 - 1, np.uint8: 127}.get(kind, 1)
    whole = (whole * scale + 128 * (kind is np.uint8)).astype(kind)
    for first in range(0, whole.shape[1] - step + 1, step):
        part = whole[:, first:first + step]
        part = part if samples.endswith("p") else part.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=samples, layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        yield frame

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = {   # what a corpus may hold -> (name, arguments of write_film)
    "h264 aac": ("a.mp4", dict(video="libx264", audio="aac", video_options={"g": "8", "bf": "2"})),
    "index first": ("b.mp4", dict(video="libx264", audio="aac", options={"movflags": "+faststart"})),
    "fragments": ("c.mp4", dict(video="libx264", audio="aac", options=FRAGMENTS, video_options={"g": "8"})),
    "matroska": ("d.mkv", dict(video="libx264", audio="aac", video_options={"bf": "2"})),
    "quicktime": ("e.mov", dict(video="mjpeg", audio="pcm_s16le", pixels="yuvj420p", samples="s16", rate=8000)),
    "avi": ("f.avi", dict(video="mpeg4", audio="libmp3lame", samples="fltp")),
    "vp8": ("g.webm", dict(video="libvpx", audio="libopus", rate=48000, samples="flt", video_options={"deadline": "realtime"})),
    "vp9": ("h.webm", dict(video="libvpx-vp9", audio="libopus", rate=48000, samples="flt", video_options={"deadline": "realtime", "cpu-used": "8"})),
    "transport": ("i.ts", dict(video="libx264", audio="aac", video_options={"g": "8"})),
    "program": ("j.mpg", dict(video="mpeg2video", audio="mp2", fps=25, samples="s16")),
    "flash": ("k.flv", dict(video="libx264", audio="aac")),
    "windows": ("l.wmv", dict(video="wmv2", audio="wmav2")),
    "wav": ("m.wav", dict(audio="pcm_s16le", samples="s16", rate=8000)),
    "mp3": ("n.mp3", dict(audio="libmp3lame", samples="fltp")),
    "ogg": ("o.ogg", dict(audio="libopus", rate=48000, samples="flt")),
    "flac": ("p.flac", dict(audio="flac", samples="s16", rate=16000)),
    "m4a": ("q.m4a", dict(audio="aac")),
    "gif": ("r.gif", dict(video="gif", pixels="rgb8")),
    "hevc": ("s.mp4", dict(video="libx265", audio="aac", size=(64, 64), video_options={"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"})),
    "eight channels": ("t.m4a", dict(audio="aac", layout="7.1", samples="flt")),   # planar frames of eight channels PyAV cannot make either
}

def whole_files(folder) -> list[Path]:
    "One file of each kind for which this build of FFmpeg has the encoders."
    there = lambda codec: codec is None or codec in av.codecs_available
    return [write_film(Path(folder) / name, **how) for name, how in KINDS.values() if there(how.get("video")) and there(how.get("audio"))]


# Damage ---------------------------------------------------------------------------------------------------------------------------

def damaged(content: bytes, rng: random.Random) -> bytes:
    "The same with some harm of one of many kinds, at random places; half of it near the start or the end, where headers and tables are."
    data, n = bytearray(content), len(content)
    def place():
        if rng.random() < .5: return rng.randrange(n)
        return min(rng.randrange(min(n, 1500)), n - 1) if rng.random() < .6 else n - 1 - rng.randrange(min(n, 1500))
    kind = rng.choice(["bits", "bytes", "run", "zeros", "ones", "truncate", "behead", "swap", "repeat", "remove", "insert", "number", "many"])
    at, length = place(), rng.choice([1, 4, 16, 188, 1024])
    if kind == "bits": data[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes": data[at] = rng.randrange(256)
    elif kind == "run": data[at:at + length] = rng.randbytes(len(data[at:at + length]))
    elif kind == "zeros": data[at:at + length] = bytes(len(data[at:at + length]))
    elif kind == "ones": data[at:at + length] = b"\xff" * len(data[at:at + length])
    elif kind == "truncate": del data[max(at, 1):]
    elif kind == "behead": del data[:at]
    elif kind == "swap":
        other = place()
        a, b = sorted((at, other))
        length = min(length, b - a, n - b)
        data[a:a + length], data[b:b + length] = data[b:b + length], data[a:a + length]
    elif kind == "repeat": data[at:at] = data[max(at - length, 0):at]
    elif kind == "remove": del data[at:at + length]
    elif kind == "insert": data[at:at] = rng.randbytes(length)
    elif kind == "number":   # a field of a header: a count, a size, a duration
        value = rng.choice([0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, rng.getrandbits(32)])
        data[at:at + 4] = struct.pack(rng.choice("<>") + "I", value)[:max(n - at, 0)]
    else:
        for _ in range(rng.randrange(2, 40)): data[place()] = rng.randrange(256)
    return bytes(data)


@dataclass(frozen=True)
class Harm:
    "A job: damage a file and read it; returns what came of it (ok, or reasons), the files that stay open and the megabytes held at most."
    source: Path
    seed: int
    limit: float = LIMIT

    def __call__(self):
        resource.setrlimit(resource.RLIMIT_AS, (24 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))   # no more than this machine can bear
        rng = random.Random(self.seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.source.name
            path.write_bytes(damaged(self.source.read_bytes(), rng) or b"x")
            ways = [lambda path: train(path, 1), rng.choice([thorough, cut, held, spread])]
            try: outcome = tuple(told(lambda: way(path)) for way in ways)
            except Exception as error: outcome = (f"{type(error).__name__}: {error}",)
            return outcome, open_below(folder), megabytes()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]: return whole_files(tmp_path_factory.mktemp("whole"))

def test_undamaged_they_are_all_read(sources):
    assert len(sources) > 8, "there are hardly any encoders in this build of FFmpeg"
    for path in sources: assert [told(lambda: way(path)) for way in (train, spread, thorough, cut, held)] == ["ok"] * 5, path

def test_two_thousand_damages_never_crash_hang_or_raise_anything_else(sources):
    results = read_all(Harm(sources[seed % len(sources)], seed) for seed in range(2000))
    assert len(results) == 2000
    bad = {job: result for job, result in results.items() if isinstance(result, Lost) or len(result[0]) == 1 or result[1]}
    assert not bad
    least = min(held for _, _, held in results.values())   # what Python and its libraries take
    worst = max(results, key=lambda job: results[job][2])
    assert results[worst][2] < least + 600, f"{worst} held {results[worst][2] - least:.0f} MB"
    came = Counter(outcome for outcomes, _, _ in results.values() for outcome in outcomes)
    assert came["ok"] > 400 and came["undecodable"] > 400   # the damage is neither trifling nor total


# Odd files made here --------------------------------------------------------------------------------------------------------------

def patched(path, kind: bytes, place: int, content: bytes):
    "An mp4 with some bytes of a box replaced, counted from its name on."
    data = bytearray(path.read_bytes())
    at = data.index(kind) + place
    data[at:at + len(content)] = content
    path.write_bytes(data)

def odd_files(folder) -> dict[Path, str]:
    "Files that are unusual, or no media at all -> what should come of a thorough look."
    make = lambda name, *arguments, **more: write_film(folder / name, *arguments, **more)
    film = make("plain.mp4", "libx264", "aac")
    still = dict(frames=1, fps=1)
    ok = [make("one pixel.mov", "png", size=(1, 1), pixels="rgb24"), make("odd size.mov", "png", size=(3, 5), pixels="rgb24"), make("one picture.mp4", "libx264", "aac", frames=1),
          make("colour.mp4", "libx264", pixels="yuv444p"), make("ten bits.mp4", "libx264", pixels="yuv420p10le"), make("grey.mp4", "libx264", pixels="gray"),
          make("alpha.mov", "qtrle", pixels="argb"), make("uneven.mkv", "libx264", pictures={0: 0, 40: 1, 500: 2, 510: 3, 900: 4}),
          make("telephone.wav", audio="pcm_s16le", samples="s16", rate=8000, layout="mono"), make("studio.wav", audio="pcm_s32le", samples="s32", rate=192000),
          make("seven.flac", audio="flac", samples="s16", layout="6.1"), make("eight.mov", audio="pcm_s16le", samples="s16", layout="7.1"), make("very short.wav", audio="pcm_s16le", samples="s16", seconds=.03)]
    for name in ("a:b, c'd %03d ?*[x] .mp4", "file:x.mp4", "new\nline.mp4", "-x.mp4", "x" * 240 + ".mp4", "a.tar@b.mp4"):
        ok.append(folder / name)
        ok[-1].write_bytes(film.read_bytes())
    make("one.png", "png", pixels="rgb24", **still), make("one.jpg", "mjpeg", pixels="yuvj420p", **still)
    for kind in ("png", "jpg"): (folder / f"a {kind}.mp4").write_bytes((folder / f"one.{kind}").read_bytes())
    texts = {"page.mp4": "<html>404</html>", "words.mp4": "some words\n" * 500, "words.txt": "some words\n" * 500, "list.mp4": f"ffconcat version 1.0\nfile {film.name}\n",
             "list.m3u8": "#EXTM3U\n#EXTINF:1,\nplain.mp4\n", "subtitles.srt": "1\n00:00:00,000 --> 00:00:02,000\nhi\n"}
    for name, text in texts.items(): (folder / name).write_text(text)
    pieces = {"zeros.mp4": bytes(50000), "noise.mp4": random.Random(0).randbytes(50000), "nothing.mp4": b"", "start.mp4": film.read_bytes()[:24], "no index.mp4": film.read_bytes()[:4000]}
    for name, content in pieces.items(): (folder / name).write_bytes(content)
    make("long.mp4", "libx264", size=(2, 1000))
    (folder / "days.mp4").write_bytes(film.read_bytes())
    patched(folder / "days.mp4", b"stts", 16, struct.pack(">I", 0x7fffffff))   # each picture lasts for days
    os.mkdir(folder / "folder.mp4"), os.mkfifo(folder / "pipe.mp4"), os.symlink("/dev/zero", folder / "device.mp4")
    os.symlink("round2.mp4", folder / "round.mp4"), os.symlink("round.mp4", folder / "round2.mp4"), os.symlink("nowhere", folder / "gone.mp4")
    bad = ["one.png", "one.jpg", "a png.mp4", "a jpg.mp4", *texts, *pieces, "long.mp4", "days.mp4", "folder.mp4", "pipe.mp4", "device.mp4"]
    return dict.fromkeys([film, *ok], "ok") | dict.fromkeys([folder / name for name in bad], "undecodable") | dict.fromkeys(
        [folder / name for name in ("round.mp4", "gone.mp4", "y" * 300 + ".mp4", "x.tar@1+2")], "missing")

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_whatever_lies_in_a_folder_is_read_or_named(tmp_path):
    expected = odd_files(tmp_path)
    ways = ("probe", "train", "thorough", "cut")
    results = {(job.path, job.way): result for job, result in read_all(Reading(path, way) for path in expected for way in ways).items()}
    lost = {key: result for key, result in results.items() if isinstance(result, Lost) or result[2]}
    assert not lost
    came = {path.name: {results[path, way][0] for way in ways} - {"too short"} for path in expected}
    assert came == {path.name: {outcome} for path, outcome in expected.items()}

def test_a_name_that_is_no_text_is_a_name(tmp_path):
    "Bytes that are not UTF-8, as old archives have them."
    path = write_film(tmp_path / "a.mp4", "libx264", "aac")
    other = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    try: other.write_bytes(path.read_bytes())
    except OSError: pytest.skip("this system has only names that are text")
    assert probe(other).duration == probe(path).duration and read_audio(other, 0, 100).shape == (100,)

def test_eight_channels_are_all_heard(tmp_path):
    "Each channel has a tone of its own, and their mean has all eight."
    path = write_film(tmp_path / "eight.m4a", audio="aac", layout="7.1", samples="flt")
    heard, t = read_audio(path, .2, 8000).numpy(), .2 + np.arange(8000) / 16000
    loud = lambda hertz: abs(np.exp(-2j * np.pi * hertz * t) @ heard) / 4000
    assert all(.02 < loud(300 + 110 * k) < .06 for k in (0, 1, 2, 4, 5, 6, 7)) and loud(265) < .005   # the fourth is the one for low rumble alone
    whole = read_audio(path, 0., 16000)
    torch.testing.assert_close(read_audio(path, .3, 4000), whole[4800:8800], atol=1e-5, rtol=0)

def test_pictures_that_are_repeated_by_empty_packets_stay_on(tmp_path):
    "`The same again` is a packet of no bytes, in Theora above all."
    with av.open(str(tmp_path / "again.nut"), "w") as out:
        stream = out.add_stream("mpeg4", rate=16, options={"g": "3"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        films = [packet for frame in [*_pictures(stream, range(6), (48, 32), Fraction(1, 16)), None] for packet in stream.encode(frame)]
        for tick in range(18):
            packet = av.Packet() if tick % 3 else films[tick // 3]
            packet.pts = packet.dts = tick
            packet.time_base, packet.stream = Fraction(1, 16), stream
            out.mux(packet)
    with av.open(str(tmp_path / "again.nut")) as container: assert [packet.size > 0 for packet in container.demux()][:-1] == [tick % 3 == 0 for tick in range(18)]
    for times in (np.arange(18) / 16, np.array([1.])):
        blue = read_video(tmp_path / "again.nut", times)[:, 2].float().mean((1, 2))
        assert (blue / 10 - torch.from_numpy(times * 16 // 3)).abs().max() < .45   # a shade is 10
    assert probe(tmp_path / "again.nut", thorough=True).duration == 18 / 16

def test_a_file_cut_off_anywhere_is_read_up_to_there(tmp_path):
    "Its index comes first, so that whatever is there can be read; the last packet of either stream is mostly a part."
    whole = write_film(tmp_path / "whole.mp4", "libx264", "aac", frames=64, seconds=4., options={"movflags": "+faststart"}, video_options={"g": "8"}).read_bytes()
    begin, statuses = whole.index(b"mdat") + 2000, []
    for size in random.Random(1).sample(range(begin, len(whole)), 30):
        (tmp_path / "cut.mp4").write_bytes(whole[:size])
        info = probe(tmp_path / "cut.mp4", thorough=True)
        train(tmp_path / "cut.mp4"), cut(tmp_path / "cut.mp4")
        assert info.status == ("truncated" if info.duration < info.promised - .5 else "ok")
        assert abs(info.duration - 4 * (size - begin + 2000) / (len(whole) - begin + 2000)) < .6
        statuses.append(info.status)
    assert Counter(statuses)["truncated"] > 20


# Tables -----------------------------------------------------------------------------------------------------------------------------

def tables(folder) -> dict[Path, callable]:
    "The tables of each corpus, as published -> how they are read."
    files = {"labels.csv": "path,label,split,start,end\na.mp4,x,train,1.5,2\nb.mp4,\"y, z\",test,2,3\n", "vggsound.csv": '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall, burbling",train\n',
             "class_labels_indices.csv": 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'}
    segments = '# Segments csv\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n{0}-4gqARaEJE, 0.000, 10.000, "/m/09x0r"\n{0}-BfvyPmVMo, 20.000, 30.000, "/m/05zppz,/m/09x0r"\n'
    files |= {f"{name}_segments.csv": segments.format(name[0]) for name in ("balanced_train", "unbalanced_train", "eval")}
    head = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    row = "P{0}_101_0,P{0},P{0}_101,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    files |= {"EPIC_100_train.csv": head + row.format("01"), "EPIC_100_validation.csv": head + row.format("02")}
    for name, text in files.items(): (folder / name).write_text(text)
    listed = Manifest.from_columns(folder, {"id": ["a", "b"], "path": ["a.mp4", "b.mp4"], "labels": [["x"], []]})
    listed.save(folder / "manifest.parquet")
    segmented = lambda: read_audioset(folder, folder)
    readers = {"labels.csv": lambda: Manifest.from_csv(folder, start="start", end="end"), "vggsound.csv": lambda: read_vggsound(folder / "vggsound.csv", folder), "manifest.parquet": lambda: Manifest.load(folder / "manifest.parquet").hash,
               "EPIC_100_train.csv": lambda: read_epic_kitchens(folder, folder), **dict.fromkeys((f"{name}_segments.csv" for name in ("balanced_train", "unbalanced_train", "eval")), segmented), "class_labels_indices.csv": segmented}
    return {folder / name: read for name, read in readers.items()}

def test_damaged_tables_are_read_or_told_in_a_sentence(tmp_path):
    rng, came, strange = random.Random(0), Counter(), []
    for path, read in tables(tmp_path).items():
        read()
        whole = path.read_bytes()
        for _ in range(150):
            path.write_bytes(damaged(whole, rng))
            try: came[(read(), "read")[1]] += 1
            except (ValueError, OSError) as error:
                came["told"] += 1
                if not str(error).startswith(str(tmp_path)) or "Traceback" in str(error): strange.append((path.name, repr(error)))
            except Exception as error: strange.append((path.name, repr(error)))
        path.write_bytes(whole)
    assert not strange
    assert came["read"] > 100 and came["told"] > 300
