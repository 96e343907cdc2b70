"Reading media: what is on the screen when, and what is heard, against an independent slow reading; and what is said of bad files."
import csv, os, pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio

from avmae.data.codec import decode_in_order, open_container
from avmae.data.frames import Painter, pictures_in_order, scaled, shown_at
from avmae.data.info import probe
from avmae.data.media import Media, MediaError, read_audio, read_clip, read_video, write_clip

SHARED = Path(__file__).parents[1] / "../shared"
CLIPS = SHARED / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the collection of odd files is not here")


def moving(seconds=4., fps=25., size=(48, 64), seed=0):
    "Pictures of which no two are alike, and noise."
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * fps))[:, None, None, None]
    coarse = torch.rand(1, 3, 6, 8, generator=g) * 120
    ground = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    x = torch.arange(size[1])
    bar = 120 * (-((x - (t * 1.7) % size[1]) / 3.) ** 2).exp()
    return (ground + bar).byte(), torch.randn(int(seconds * 16000), generator=g).clamp(-3, 3) / 8


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_clip(path, *moving())
    return path


# The reference: av only, everything in order, one picture and one sample at a time ------------------------------------------------

def reference_frames(path):
    "Seconds from the first picture at which each appears; decodable frames only, none that goes back in time."
    now, container = None, av.open(str(path))
    container.streams.video[0].codec_context.thread_count = 1   # FFmpeg's VP8 gives other pixels now and then if it decodes slices in parallel, which is PyAV's default
    for packet in container.demux(container.streams.video[0]):
        try: frames = packet.decode()
        except av.FFmpegError: continue
        for frame in frames:
            if now is None or frame.pts * frame.time_base > now:
                now = frame.pts * frame.time_base
                yield float(now), frame
    container.close()


def reference_pictures(path, times):
    appears = [seconds for seconds, _ in reference_frames(path)]
    wanted = [max([i for i, s in enumerate(appears) if s - appears[0] <= t + 1e-3], default=0) for t in times]
    kept = {i: np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for i, (_, frame) in enumerate(reference_frames(path)) if i in wanted}
    return np.stack([kept[i] for i in wanted]), appears[0]


def reference_sound(path, origin):
    "All of the sound at 16 kHz, sample 0 at `origin`; for streams without gaps."
    container, parts, first = av.open(str(path)), [], None
    for frame in container.decode(audio=0):
        first = float(frame.pts * frame.time_base) if first is None else first
        samples = frame.to_ndarray().astype(np.float64)
        if frame.format.name.startswith("s16"): samples = samples / 32768
        parts.append(samples.mean(0) if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).mean(1))
        rate = frame.rate
    whole = torchaudio.functional.resample(torch.from_numpy(np.concatenate(parts)), rate, 16000).float()
    offset = round((first - origin) * 16000)
    return torch.cat([torch.zeros(max(offset, 0)), whole[max(-offset, 0):]])


# Generated files ------------------------------------------------------------------------------------------------------------------

def test_any_times_in_any_order_show_what_the_reference_shows(film):
    rng = np.random.default_rng(0)
    for _ in range(6):
        times = rng.uniform(0, 4, rng.integers(1, 12))
        assert np.array_equal(read_video(film, times).permute(0, 2, 3, 1).numpy(), reference_pictures(film, times)[0])


def test_quick_way_equals_plain_way_at_every_picture(film):
    times = np.arange(100) / 25
    with Media(film) as media:
        for start in range(0, 100, 9):
            quick = media.video(times[start:start + 5], short_side=24)
            plain = pictures_in_order(film, times[start:start + 5], 24)
            assert np.array_equal(quick.permute(0, 2, 3, 1).numpy(), np.stack(plain))
    assert quick.shape[-2:] == (24, 32)


def test_pictures_are_those_that_were_written(film):
    video, _ = moving()
    assert (read_video(film, np.arange(100) / 25).float() - video.float()).abs().mean() < 3


def test_quick_way_decodes_less(film, monkeypatch):
    shown = []
    monkeypatch.setattr("avmae.data.frames.Painter.__call__", lambda self, frame, paint=Painter.__call__: shown.append(frame.pts) or paint(self, frame))
    read_video(film, [1., 1.16, 1.32, 1.16])
    assert len(shown) == 3   # a picture asked for twice is made once; none in between is converted


def test_sound_from_anywhere_equals_the_whole(film):
    whole = reference_sound(film, 0.)[:64000]
    for start, samples in ((0, 64000), (.1, 5000), (1.23456, 16000), (3.9, 1600)):
        first = round(start * 16000)
        torch.testing.assert_close(read_audio(film, start, samples), whole[first:first + samples], atol=1e-4, rtol=0)
    assert not read_audio(film, -.5, 16000)[:8000].any()
    assert not read_audio(film, 3.5, 16000)[63 * 1024 - 56000:].any()   # silence after the last AAC frame, the 63rd of 1024 samples


@pytest.mark.parametrize("rate", [16000, 44100, 22050])
def test_sound_after_a_seek_is_the_same(tmp_path, rate):
    noise = torch.randn(20 * rate, generator=torch.Generator().manual_seed(1)) / 8
    write_clip(tmp_path / "long.mp4", None, noise, rate=rate)
    whole = read_audio(tmp_path / "long.mp4", 0, 20 * 16000)
    for start in (10.5, 13.777, 19.):
        first = round(start * 16000)
        torch.testing.assert_close(read_audio(tmp_path / "long.mp4", start, 8000), whole[first:first + 8000], atol=2e-6, rtol=0)


def test_both_windows_start_at_the_same_instant(tmp_path):
    "A picture turns white at the instant at which a tone begins, for starts that are no multiple of anything."
    video, waveform = torch.zeros(75, 3, 16, 16, dtype=torch.uint8), torch.zeros(48000)
    video[40:], waveform[25600:] = 255, torch.sin(torch.arange(22400) * .7)
    write_clip(tmp_path / "flash.mp4", video, waveform)
    for start in (0., .731, 1.1, 1.59):
        clip = read_clip(tmp_path / "flash.mp4", start=start, frames=70, stride=1, fps=40.)
        white = (clip.video.float().mean((1, 2, 3)) > 128).int().argmax() / 40
        tone = (clip.waveform.abs() > .3).int().argmax() / 16000
        assert abs(white - (1.6 - start)) <= 1 / 40 + 1e-6 and abs(tone - (1.6 - start)) < .003


def test_running_over_the_end_goes_on_from_the_beginning(film):
    every, whole = read_video(film, np.arange(100) / 25), read_audio(film, 0, 64000)
    clip = read_clip(film, start=3.2, frames=16, stride=4, samples=150000)
    assert torch.equal(clip.video, every[(80 + 4 * torch.arange(16)) % 100])
    torch.testing.assert_close(clip.waveform, whole[(51200 + torch.arange(150000)) % 64000], atol=1e-6, rtol=0)
    part = read_clip(film, start=.9, frames=4, samples=3200, within=(1., 2.))
    assert torch.equal(part.video, every[[47, 26, 30, 34]]) and part.duration == 1.
    torch.testing.assert_close(part.waveform, whole[16000 + (14400 + torch.arange(3200)) % 16000], atol=1e-6, rtol=0)


def test_long_files_wrap_too(tmp_path):
    write_clip(tmp_path / "long.mp4", None, torch.sin(torch.arange(25 * 16000) * .05 * (1 + torch.arange(25 * 16000) / 1e6)) / 2)
    whole = read_audio(tmp_path / "long.mp4", 0, 25 * 16000)
    clip = read_clip(tmp_path / "long.mp4", start=24., frames=0, samples=48000)
    torch.testing.assert_close(clip.waveform, whole[(24 * 16000 + torch.arange(48000)) % (25 * 16000)], atol=1e-5, rtol=0)


def test_uneven_pictures_are_chosen_by_time(tmp_path):
    rng = np.random.default_rng(3)
    ticks = np.cumsum(rng.integers(10, 300, 40))
    with av.open(str(tmp_path / "uneven.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width = stream.height = 16
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for i, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 6 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(tick), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    appears = (ticks - ticks[0]) / 1000
    times = np.sort(rng.uniform(0, appears[-1], 30))
    expected = [6 * max(i for i, s in enumerate(appears) if s <= t + 1e-3) for t in times]
    shown = read_video(tmp_path / "uneven.mkv", times).float().mean((1, 2, 3))
    assert (shown - torch.tensor(expected)).abs().max() < 3
    assert read_video(tmp_path / "uneven.mkv", [1e3]).float().mean() > 230   # the last picture stays


def shown_through(picture, a, b, c, d):
    "Pixel (x, y) of a stored picture is shown at (a x + c y, b x + d y), moved so that all is visible."
    y, x = np.mgrid[:picture.shape[0], :picture.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    out = np.empty((np.ptp(to_y) + 1, np.ptp(to_x) + 1, 3), np.uint8)
    out[to_y - to_y.min(), to_x - to_x.min()] = picture
    return out


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_all_eight_ways_to_hold_a_picture(film, tmp_path, matrix):
    number = lambda *values: b"".join((v << 16).to_bytes(4, "big", signed=True) for v in values)
    data, (a, b, c, d) = film.read_bytes(), matrix
    plain = number(1, 0, 0, 0, 1, 0, 0, 0)
    at = data.index(plain, data.index(b"tkhd"))
    (tmp_path / "held.mp4").write_bytes(data[:at] + number(a, b, 0, c, d, 0, 0, 0) + data[at + len(plain):])
    stored, shown = (read_video(path, [1.]).permute(0, 2, 3, 1)[0].numpy() for path in (film, tmp_path / "held.mp4"))
    assert np.array_equal(shown, shown_through(stored, *matrix))
    info = probe(tmp_path / "held.mp4").video
    assert (info.height, info.width) == shown.shape[:2]
    assert read_video(tmp_path / "held.mp4", [1.], short_side=24).shape[-2:] == scaled(*shown.shape[:2], 24)


def test_short_side_and_the_other_rounded_down():
    assert [scaled(*size, 256) for size in ((720, 1280), (1280, 720), (256, 256), (100, 333))] == [(256, 455), (455, 256), (256, 256), (256, 852)]
    assert scaled(7, 9, None) == (7, 9)


def test_absent_streams_are_absent_and_said(tmp_path):
    video, waveform = moving(1.)
    write_clip(tmp_path / "silent.mp4", video, None)
    write_clip(tmp_path / "radio.mp4", None, waveform)
    silent, radio = read_clip(tmp_path / "silent.mp4"), read_clip(tmp_path / "radio.mp4")
    assert silent.waveform is None and silent.video.shape == (16, 3, 48, 64)
    assert radio.video is None and radio.waveform.shape == (40960,)
    assert (probe(tmp_path / "silent.mp4").status, probe(tmp_path / "radio.mp4").status) == ("no audio", "no video")
    for path, window, reason in (("silent.mp4", dict(frames=0, samples=100), "no audio"), ("radio.mp4", dict(samples=0), "no video")):
        with pytest.raises(MediaError, match=f"there is no {reason[3:]} stream") as caught: read_clip(tmp_path / path, **window)
        assert caught.value.reason == reason
    assert read_clip(tmp_path / "silent.mp4", frames=4, samples=0).waveform is None


@pytest.mark.parametrize("name, content, reason, said", [
    ("nowhere.mp4", None, "missing", "no such file"), ("empty.mp4", b"", "undecodable", "empty"), ("page.mp4", b"<html></html>", "undecodable", "cannot be opened"),
    ("notes.txt", b"just some text\n" * 50, "undecodable", "text|cannot be opened"), ("half.mp4", 600, "undecodable", "cannot be opened")])
def test_what_is_no_media_is_said_in_a_sentence(film, tmp_path, name, content, reason, said):
    path = tmp_path / name
    if content is not None: path.write_bytes(film.read_bytes()[:content] if isinstance(content, int) else content)
    for read in (probe, read_clip, lambda p: read_video(p, [0.]), lambda p: read_audio(p, 0, 10)):
        with pytest.raises(MediaError, match=said) as caught: read(path)
        assert caught.value.reason == reason and str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))   # as it leaves a worker process
    assert str(again) == str(caught.value) and again.reason == reason


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a file"): probe(tmp_path / "pipe.mp4")


def holed(film, path, second):
    "A copy with zeros in place of the picture that is shown at a second."
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts is not None and abs(p.pts * p.time_base - second) < 1e-6)
    data[packet.pos:packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


def test_a_hole_concerns_whoever_looks_into_it(film, tmp_path):
    path = holed(film, tmp_path / "hole.mp4", 2.)
    with av.open(str(film)) as container:
        keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.pts is not None and p.is_keyframe]
    heals = min(key for key in keys if key > 2)
    assert torch.equal(read_video(path, [.5, 1.5]), read_video(film, [.5, 1.5]))
    assert torch.equal(read_video(path, [heals, 3.9]), read_video(film, [heals, 3.9]))
    for times in ([2.], [1.5, 2.4], [heals - .04]):
        with pytest.raises(MediaError, match=r"video cannot be decoded at 2\.00 s") as caught: read_video(path, times)
        assert caught.value.reason == "undecodable"
    assert probe(path).status == "ok"   # a quick look
    with pytest.raises(MediaError, match="cannot be decoded"): probe(path, thorough=True)
    assert probe(film, thorough=True).status == "ok"


def test_the_end_is_where_the_data_end(film, tmp_path):
    data = film.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:len(data) * 2 // 3])
    info = probe(tmp_path / "cut.mp4")
    assert info.status == "truncated" and 1 < info.duration < 3.5 and abs(info.promised - 4) < .1 and "promises 4.00 s" in info.note
    start = info.duration - .5
    clip = read_clip(tmp_path / "cut.mp4", start=start, frames=8, samples=0)   # wraps at the true end
    assert torch.equal(clip.video[-1], read_video(film, [(start + 28 / 25) % info.duration])[0])


def test_written_files_are_whole_reproducible_and_small(tmp_path):
    video, waveform = moving(2.)
    for name in ("a.mp4", "b.mp4"): write_clip(tmp_path / name, video, waveform)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(ValueError, match="even h and w"): write_clip(tmp_path / "c.mp4", video[..., 1:], waveform)
    (tmp_path / "file").touch()
    with pytest.raises(OSError): write_clip(tmp_path / "file" / "d.mp4", video, waveform)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "file"]
    info = probe(tmp_path / "a.mp4")
    assert info.duration == 2. and info.video.fps == 25 and info.audio.rate == 16000


def test_no_handle_stays_open(film, tmp_path):
    bad = holed(film, tmp_path / "hole.mp4", 2.)
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:6000])
    def use():
        for path in (film, bad, tmp_path / "cut.mp4", tmp_path / "none.mp4"):
            for start in (.1, 2.5):
                try: read_clip(path, start=start), probe(path)
                except MediaError: pass
    handles = lambda: sum(os.path.exists(f"/proc/self/fd/{fd}") and str(tmp_path) in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    if not os.path.isdir("/proc/self/fd"): pytest.skip("needs /proc")
    for _ in range(5): use()
    assert handles() == 0


def test_damage_never_does_more_than_a_media_error(film, tmp_path):
    rng, data, path = np.random.default_rng(0), film.read_bytes(), tmp_path / "damaged.mp4"
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data) if rng.random() < .5 else 4000, rng.integers(1, 12)):
            damaged[at:at + int(rng.integers(1, 30))] = rng.bytes(int(rng.integers(1, 30)))
        path.write_bytes(damaged[:int(rng.integers(len(data)))] if rng.random() < .1 else damaged)
        for read in (probe, lambda p: read_clip(p, start=float(rng.uniform(0, 4)), short_side=24)):
            try: read(path)
            except MediaError as error: assert error.path == str(path)


# Files that nobody here made ------------------------------------------------------------------------------------------------------

UNDECODABLE = {"derived_empty.mp4": "empty", "derived_text.mp4": "cannot be opened", "derived_trunc60_realshort.mp4": "cannot be opened",
               "seek_encrypted.webm": "no video frame", "invalid_vp9_bitstream-bug_1416.webm": "12336 x 12336 pixels", "bug603918.webm": "no audio frame"}
RESTARTED = {"mimetype_mkv.mkv"}           # its sound goes back in time
HURT = {"corrupted.mp4": 2.9, "derived_trunc60_stream-of-water.mp4": 1.6}   # breaks after so many seconds


def listed():
    if not CLIPS.is_dir(): return []
    with open(CLIPS / "index.csv") as rows: return [row["file"] for row in csv.DictReader(rows)]


@needs_clips
@pytest.mark.parametrize("name", listed())
def test_odd_file_is_read_as_the_reference_reads_it_or_named(name):
    path = CLIPS / name
    if name in UNDECODABLE:
        with pytest.raises(MediaError, match=UNDECODABLE[name]) as caught: probe(path)
        assert caught.value.reason == "undecodable" and caught.value.path == str(path)
        return
    info = probe(path)
    with Media(path) as media: origin = media.origin
    rng, last = np.random.default_rng(0), min(info.duration, HURT.get(name, np.inf)) - 1e-3
    if info.video:
        times = np.concatenate([np.sort(rng.uniform(0, last, 3)), [0.], rng.uniform(0, max(last - .8, 0)) + np.arange(4) * .16])
        times = times[times <= last]
        expected, first = reference_pictures(path, times)
        assert abs(first - origin) < 1e-6
        assert np.array_equal(read_video(path, times).permute(0, 2, 3, 1).numpy(), expected)
        assert np.array_equal(read_video(path, times[-1:]).permute(0, 2, 3, 1).numpy(), expected[-1:])
        assert expected.shape[1:3] == (info.video.height, info.video.width)
    if info.audio and name not in RESTARTED:
        whole = reference_sound(path, origin)
        for start in (0., .3 * info.duration, .8 * info.duration):
            first, samples = round(start * 16000), min(8000, round(.15 * info.duration * 16000))
            expected, sound = whole[first:first + samples], read_audio(path, start, samples)
            sound, expected = sound[:len(expected)].double(), expected.double()
            if start > 10:   # after a seek the place is as exact as the container's clock: a millisecond in Matroska
                cut = lambda shift: whole[first + shift:first + shift + len(sound)].double()
                expected = max((cut(shift) for shift in range(-16, 17)), key=lambda x: float(x @ sound))
                assert float(expected @ sound) >= .93 * float(expected.norm() * sound.norm())
            else: torch.testing.assert_close(sound, expected, atol=2e-4, rtol=0)
    clip = read_clip(path, start=.3 * last, frames=4, stride=1, samples=3000, short_side=64, within=(0., last))
    assert (clip.video is None) == (info.video is None) and (clip.waveform is None) == (info.audio is None)


@needs_clips
def test_odd_files_are_named():
    note = lambda name: probe(CLIPS / name).note
    assert "promises" in note("derived_trunc60_stream-of-water.mp4") and probe(CLIPS / "derived_trunc60_stream-of-water.mp4").status == "truncated"
    assert "frame rate varies" in note("VID_20191220_170832.mp4")
    assert "turned by 90" in note("video_270.mov")
    assert "sound starts 0.08 s before" in note("movie-hello.avi")
    assert probe(CLIPS / "detodos.webm").status == "no video" and probe(CLIPS / "mmaction2_test.mp4").status == "no audio"
    with pytest.raises(MediaError, match=r"cannot be decoded at 3\.00 s"): read_video(CLIPS / "corrupted.mp4", [3.5])


@pytest.mark.skipif(not (SHARED / "corpora/grid").is_dir(), reason="GRID is not here")
def test_grid_keeps_its_time_stamps():
    "The sound of these files begins 4.3 ms before the pictures; what was said before 0 s is cut, nothing is moved."
    path = SHARED / "corpora/grid/clips/bbaf2n.mp4"
    with av.open(str(path)) as container: early = next(container.decode(audio=0))
    assert -.006 < float(early.pts * early.time_base) < -.003
    torch.testing.assert_close(read_audio(path, 0, 40000), reference_sound(path, 0.)[:40000], atol=1e-5, rtol=0)


def test_shown_at_and_in_order_agree_with_their_definition(film):
    appears = np.array([0., .1, .15, .4])
    assert shown_at([-1, 0, .0995, .1, .3, 9], appears).tolist() == [0, 0, 1, 1, 2, 3]
    with open_container(film) as container:
        assert [round(s * 25) for s, _, _ in decode_in_order(container, container.streams.video[0])] == list(range(100))
