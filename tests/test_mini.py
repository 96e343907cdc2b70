"""The miniature corpora: what they are follows from the seed, the splits share nothing, and the files are what the lists say."""
import csv, re
from collections import Counter
import numpy as np, pytest
from avmae.data import mini, scenes
from avmae.data.corpora import read_audioset, read_epic_kitchens
from avmae.data.info import probe
from avmae.data.media import read_clip


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
    seen = scenes.hop(np.arange(50) / mini.FPS, starts)
    for start in starts:
        assert loud[int(start * 100):][:6].max() > 2 * np.median(loud)
        assert seen[round((start + .12) * mini.FPS)] > .9
    assert seen[round(.9 * mini.FPS)] == 0


@pytest.mark.parametrize("render", [lambda rng: scenes.pattern("spotted", np.zeros(1), np.zeros(1), 0.), lambda rng: scenes.tone(rng, "barking", 440.)])
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


# ---- AudioSet and Epic-Kitchens-100

WRITERS = {"audioset": (mini.write_mini_audioset, lambda root: read_audioset(root, root)), "epic_kitchens": (mini.write_mini_epic_kitchens, lambda root: read_epic_kitchens(root, root))}
files = lambda root: {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
media = lambda root: {name: content for name, content in files(root).items() if name.lower().endswith(".mp4")}


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
    "(name, folder, its manifest) of a corpus of 14 + 13 clips."
    write, read = WRITERS[request.param]
    root = write(tmp_path_factory.mktemp(request.param), train=14, test=13, processes=1)
    return request.param, root, read(root)


def test_what_is_written_is_found_and_decodes(written):
    name, root, manifest = written
    test = {"audioset": "test", "epic_kitchens": "validation"}[name]
    assert manifest.coverage("train") == (14, 14) and manifest.coverage(test) == (13, 13)
    checked = manifest.check(thorough=True)
    assert set(checked["status"]) == {"ok"} and set(checked["fps"]) == {mini.FPS} and set(checked["audio_rate"]) == {mini.RATE}
    for row in range(len(checked)):
        begin, end = checked.within(row)
        assert 1.5 < end - begin < 2.7 and checked[row].duration >= end
        clip = read_clip(checked.file(row), start=begin, frames=4, stride=4, samples=8000)
        assert clip.video.shape == (4, 3, mini.SIDE, mini.SIDE) and clip.waveform.abs().max() > .01


def test_fewer_are_the_first_of_more_in_any_number_of_processes_and_what_is_lost_comes_back(written, tmp_path):
    name, root, manifest = written
    write, _ = WRITERS[name]
    write(tmp_path, train=13, test=2, processes=2)
    few, many = media(tmp_path), media(root)
    assert few.items() <= many.items() and len(few) > 2
    lost = sorted(few)[0]
    (tmp_path / lost).unlink()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.[mM][pP]4")}
    write(tmp_path, train=14, test=13, processes=1)
    assert files(tmp_path) == files(root) and all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


def test_another_seed_has_other_files(written, tmp_path):
    name, root, _ = written
    WRITERS[name][0](tmp_path, train=2, test=1, seed=1, processes=1)
    assert not media(tmp_path).keys() & media(root).keys() and not set(media(tmp_path).values()) & set(media(root).values())


def test_empty_lists_are_refused(written, tmp_path):
    for sizes in (dict(train=0, test=4), dict(train=4, test=0)):
        with pytest.raises(ValueError, match="none of them empty"): WRITERS[written[0]][0](tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


def test_labels_of_audioset_are_those_of_the_scenes(tmp_path):
    root = mini.write_mini_audioset(tmp_path, train=12, test=6, processes=1)
    manifest = read_audioset(root, root)
    scenes = [mini.MiniScene(0, split, k) for split, count in (("balanced_train", 2), ("unbalanced_train", 10), ("eval", 6)) for k in range(count)]
    assert manifest["labels"] == [[" ".join(mini.CLASSES[k]) for k in scene.classes] for scene in scenes]
    assert manifest.classes == tuple(" ".join(pair) for pair in mini.CLASSES) and len(read_audioset(root, root, "20K").split("train")) == 2
    lines = (root / "eval_segments.csv").read_text().splitlines()
    assert [line[0] for line in lines[:3]] == ["#"] * 3 and all(re.fullmatch(r'[\w-]{11}, \d+\.000, \d+\.000, "/m/\w+(,/m/\w+){0,2}"', line) for line in lines[3:])


def test_scenes_have_one_to_three_classes_evenly_but_in_the_unbalanced_list():
    for split, low, high in (("balanced_train", 1, 2), ("eval", 1, 2), ("unbalanced_train", 4, 12)):
        scenes = [mini.MiniScene(0, split, k).classes for k in range(1200)]
        assert all(len(set(scene)) == len(scene) for scene in scenes) and set(map(len, scenes)) == {1, 2, 3}
        counts = Counter(k for scene in scenes for k in scene)
        assert low <= max(counts.values()) / min(counts.values()) < high and len(counts) == 12


def test_things_of_a_scene_lie_apart_and_move_to_their_own_sounds():
    scene = next(s for s in (mini.MiniScene(0, "eval", k) for k in range(99)) if len(s.classes) == 3)
    video, wave = scene.render()
    assert video.shape == (50, 3, 80, 80) and wave.shape == (32000,)
    rng, seen = np.random.default_rng(0), []
    for starts in (np.array([.4]), np.array([1.2])):
        things = [mini.Thing("banded", starts, across=(20, 20), down=(20, 20), size=(15, 15))]
        frames = mini.render_scene(np.random.default_rng(3), things, 50, mini.background(rng))
        seen.append(np.abs(np.diff(frames[:, :, :45, :45].astype(float), axis=0)).mean((1, 2, 3)).argmax() / mini.FPS)
    assert abs(seen[0] - .52) < .2 and abs(seen[1] - 1.32) < .2


@pytest.mark.parametrize("motion", mini.MOTIONS)
def test_an_object_comes_back_to_where_it_was(motion):
    y, x = np.mgrid[-20:20, -20:20].astype(float)
    still = scenes._moved(motion, np.zeros((1, 1, 1)), x, y)
    assert np.allclose(still[0], x) and np.allclose(still[1], y)
    moved = scenes._moved(motion, np.full((1, 1, 1), 8.), x, y)
    assert abs(moved[0] - x).max() + abs(moved[1] - y).max() > 4


def test_an_unknown_motion_is_named():
    with pytest.raises(ValueError, match="motion 'jump' is unknown: choose one of hop"): scenes._moved("jump", 0., 0., 0.)


def test_verbs_leave_one_sense_two_answers_and_nouns_need_eyes():
    assert len(set(mini.VERBS)) == 8 and len(set(mini.NOUNS)) == 8
    for sense, kinds in enumerate((mini.MOTIONS, mini.SOUNDS)): assert [sum(verb[sense] == kind for verb in mini.VERBS) for kind in kinds] == [2] * 4


def test_kitchens_share_no_cook_and_their_actions_follow_each_other():
    videos = [mini.MiniKitchen(seed, split, k) for seed in (0, 1) for split in ("train", "validation") for k in range(80)]
    assert len({video.id for video in videos}) == len(videos)
    assert not {video.cook for video in videos if video.split == "train"} & {video.cook for video in videos if video.split == "validation"}
    for video in videos[::9]:
        times = [frame for action in video.actions for frame in (action.begin, action.end)]
        assert times == sorted(times) and len(video.actions) == mini.ACTIONS and min(np.diff(times)) >= 8
    verbs, nouns = (Counter(getattr(action, head) for video in videos for action in video.actions) for head in ("verb", "noun"))
    assert min(verbs.values()) > 400 and min(nouns.values()) > 400   # of 3840 in 8 classes


def test_epic_kitchens_in_the_published_format(tmp_path):
    root = mini.write_mini_epic_kitchens(tmp_path, train=13, test=1, processes=1)
    rows = list(csv.DictReader((root / "EPIC_100_train.csv").open()))
    assert list(rows[0]) == ("narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,"
                             "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes").split(",")
    assert [row["narration_id"] for row in rows[11:]] == ["P01_100_11", "P02_100_0"] and (root / "P01/videos/P01_100.MP4").is_file()
    manifest = read_epic_kitchens(root, root)
    actions = [action for k in range(2) for action in mini.MiniKitchen(0, "train", k).actions][:13]
    for row, action, line in zip(manifest, actions, rows):
        assert (row.start, row.end) == pytest.approx((action.begin / mini.FPS, action.end / mini.FPS)) and line["start_frame"] == str(action.begin)
        assert row.labels == ["noun/" + ":".join(mini.NOUNS[action.noun]), "verb/" + "-".join(mini.VERBS[action.verb])] == [f"noun/{line['noun']}", f"verb/{line['verb']}"]
    assert manifest.classes == tuple("noun/" + ":".join(noun) for noun in mini.NOUNS) + tuple("verb/" + "-".join(verb) for verb in mini.VERBS)


def test_an_action_is_heard_and_seen_in_its_time():
    kitchen = mini.MiniKitchen(0, "train", 1)
    video, wave = kitchen.render()
    loud = np.sqrt((wave[:len(video) * 640].reshape(len(video), 640) ** 2).mean(1))
    inside = np.zeros(len(video), bool)
    for action in kitchen.actions: inside[action.begin:action.end + 6] = True   # the last note fades away
    assert np.median(loud[inside]) > 1.2 * np.median(loud[~inside])
    moving = np.abs(np.diff(video.astype(float), axis=0)).mean((1, 2, 3))
    assert np.sort(moving[inside[1:]])[-60:].mean() > 1.2 * np.median(moving[~inside[1:]])


def test_clock():
    assert [mini._clock(frame) for frame in (0, 16, 1499, 90_025)] == ["00:00:00.00", "00:00:00.64", "00:00:59.96", "01:00:01.00"]
