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
from avmae.data.manifest import Manifest
from avmae.data.media import probe, write_clip
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

def read_all(jobs, workers=2) -> dict:
    "{job: result}"
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
               video_options=None, seconds=1., pictures=None, **more) -> Path:
    "Any container and codecs; `pictures`: {tick of 1/1000 s: number} where the frame rate is not even."
    with av.open(str(path), "w", options=options or {}, **more) as out:
        streams, packets = [], []
        if video:
            stream = out.add_stream(video, rate=fps, options=video_options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            if pictures: stream.codec_context.time_base = Fraction(1, 1000)
            streams.append((stream, _pictures(stream, pictures or dict.fromkeys(range(frames)), size, bool(pictures))))
        if audio:
            stream = out.add_stream(audio, rate=rate, layout=layout)
            stream.bit_rate = 64_000
            streams.append((stream, _sounds(stream, rate, layout, samples, seconds)))
        for stream, frames_of in streams:
            for frame in [*frames_of, None]: packets += stream.encode(frame)
        out.start_encoding()
        for packet in sorted((p for p in packets if p.dts is not None), key=lambda p: p.dts * p.time_base): out.mux(packet)
    return Path(path)

def _pictures(stream, ticks, size, uneven):
    for k, tick in enumerate(ticks):
        frame = av.VideoFrame.from_ndarray(picture(k, *size), format="rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base = tick, Fraction(1, 1000) if uneven else 1 / stream.codec_context.framerate
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
