"""The miniature corpus: what it is follows from the seed, the splits share nothing, and the files are what the csv says."""
import csv
import numpy as np, pytest
from avmae.data import mini
from avmae.data.media import probe, read_clip


def test_content_follows_from_seed_split_and_number_alone(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    mini.write_mini_vggsound(few, train=2, test=1, processes=1)
    mini.write_mini_vggsound(many, train=20, test=1, processes=2)
    for file in few.rglob("*.mp4"): assert file.read_bytes() == (many / file.relative_to(few)).read_bytes()
    assert not {c.name for c in few.rglob("*.mp4")} & {mini.MiniClip(1, "train", k).file.split("/")[1] for k in range(20)}


def test_an_interrupted_corpus_is_completed_and_a_complete_one_left_alone(tmp_path):
    table = mini.write_mini_vggsound(tmp_path, train=3, test=0, processes=1)
    lost, *kept = sorted(tmp_path.rglob("*.mp4"))
    table.unlink(); lost.unlink()
    stamps = [k.stat().st_mtime_ns for k in kept]
    mini.write_mini_vggsound(tmp_path, train=3, test=0, processes=1)
    assert lost.exists() and table.exists() and stamps == [k.stat().st_mtime_ns for k in kept]


def test_csv_is_in_the_published_format_and_names_the_files(tmp_path):
    rows = list(csv.reader(mini.write_mini_vggsound(tmp_path, train=4, test=2, processes=1).open()))
    assert [row[3] for row in rows] == ["train"] * 4 + ["test"] * 2
    for id, start, label, _ in rows:
        assert len(id) == 11 and tuple(label.split()) in mini.CLASSES
        info = probe(tmp_path / "clips" / f"{id}_{int(start):06d}.mp4")
        assert (info.video.width, info.video.height, round(info.video.fps)) == (mini.SIDE, mini.SIDE, mini.FPS)
        assert info.audio.rate == mini.RATE and abs(info.duration - mini.SECONDS) < .1


def test_splits_share_no_clip_no_background_and_no_random_stream():
    clips = [mini.MiniClip(0, split, k) for split in ("train", "test") for k in range(60)]
    assert len({c.id for c in clips}) == 120
    corners = {c.render()[0][:, :, :2, :2].mean((0, 2, 3)).round(3).tobytes() for c in clips[:30] + clips[60:90]}
    assert len(corners) == 60
    draws = {np.random.default_rng([0, split, k]).random() for split in (0, 1) for k in range(60)}
    assert len(draws) == 120


def test_one_sense_leaves_three_classes_open_and_both_leave_one():
    assert len(set(mini.CLASSES)) == 12
    for sense, kinds in enumerate((mini.SURFACES, mini.SOUNDS)):
        assert [sum(pair[sense] == kind for pair in mini.CLASSES) for kind in kinds] == [3] * 4


def test_colour_says_nothing_about_the_surface():
    "A nearest-mean guess from the mean colour of the middle is right about one time in four."
    clips = [mini.MiniClip(0, "train", k) for k in range(240)]
    colours = np.stack([clip.render()[0][:, :, 30:50, 30:50].mean((0, 2, 3)) for clip in clips])
    kinds = np.array([mini.SURFACES.index(clip.pair[0]) for clip in clips])
    means = np.stack([colours[:120][kinds[:120] == kind].mean(0) for kind in range(4)])
    guesses = ((colours[120:, None] - means) ** 2).sum(-1).argmin(-1)
    assert (guesses == kinds[120:]).mean() < .25 + 3 * np.sqrt(.25 * .75 / 120)


def test_hops_are_seen_when_the_notes_are_heard():
    starts = np.array([.4, 1.2])
    wave = mini.render_sound(np.random.default_rng(0), "ringing", starts)
    loud = np.abs(wave).reshape(-1, 160).max(1)   # per 10 ms
    seen = mini.hop(np.arange(50) / mini.FPS, starts)
    for start in starts:
        assert loud[int(start * 100):][:6].max() > 2 * np.median(loud)
        assert seen[round((start + .12) * mini.FPS)] > .9
    assert seen[round(.9 * mini.FPS)] == 0


@pytest.mark.parametrize("render", [lambda rng: mini.pattern("spotted", np.zeros(1), np.zeros(1), 0.), lambda rng: mini.tone(rng, "barking", 440.)])
def test_unknown_surfaces_and_sounds_are_named(render):
    with pytest.raises(ValueError, match="unknown: choose one of"): render(np.random.default_rng(0))


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one clip"): mini.write_mini_vggsound(tmp_path, train=0, test=0)


def test_what_is_written_is_what_was_rendered(tmp_path):
    clip = mini.MiniClip(0, "train", 0)
    (tmp_path / "clips").mkdir(); clip.write(tmp_path)
    video, wave = clip.render()
    read = read_clip(tmp_path / clip.file, start=0., frames=10, stride=4, samples=len(wave))
    blocks = lambda x: x.astype(float).reshape(10, 3, 20, 4, 20, 4).mean((3, 5))        # the codec drops the camera's noise
    assert np.abs(blocks(read.video.numpy()) - blocks(video[:40:4])).mean() < 4         # of 255
    assert np.corrcoef(read.waveform.numpy(), wave)[0, 1] > .9
