"Clips and batches: where windows lie, samples that follow from (seed, epoch, id) alone, and what happens to what cannot be read."
import dataclasses
from collections import Counter
import numpy as np
import pytest
import torch
from avmae.data.augment import scale_jitter
from avmae.data.clips import ClipConfig, ClipDataset, Window, centre_crop, random_crop_flip, random_window, sample_rng, spread_windows
from avmae.data.codec import MediaError
from avmae.data.loader import EvalBatches, TooManyFailures, TrainBatches, epoch_order, interleave, make_loader
from avmae.data.manifest import Manifest
from avmae.data.media import Media, read_audio, write_clip

SMALL = ClipConfig(frames=4, stride=3, resize=24, size=16, samples=8000)


def counting(n):
    "Pictures that show their number: eight bits, black or white."
    bits = (torch.arange(n)[:, None] >> torch.arange(8)) & 1
    return (bits * 255).byte().view(n, 1, 2, 4).repeat_interleave(8, 2).repeat_interleave(4, 3).expand(n, 3, 16, 16)

def numbers(video):
    "The numbers that pictures show."
    bits = video.float().mean(1).view(-1, 2, 8, 4, 4).mean((2, 4)).view(-1, 8) > 128
    return (bits * 2 ** torch.arange(8)).sum(1).tolist()

def textured(seed, n=50):
    "Pictures in which every crop differs from every other and from its mirror image."
    g = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8, generator=g) * 200, size=(24, 32), mode="bilinear")
    return (coarse + torch.arange(n)[:, None, None, None]).byte()

def tone(seed, samples=32000): return torch.sin(torch.arange(samples) * (.1 + .02 * seed)) / 2

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Ten clips of two seconds; number 6 has no sound, number 7 a silent sound track."
    root = tmp_path_factory.mktemp("corpus")
    sound = {6: None, 7: torch.zeros(32000)}
    for k in range(10): write_clip(root/f"{k}.mp4", textured(k), sound.get(k, tone(k)))
    (root/"labels.csv").write_text("path,label,split\n" + "".join(f"{k}.mp4,{'ab'[k % 2]},train\n" for k in range(10)))
    return root

@pytest.fixture
def damaged(corpus, tmp_path):
    "A copy of the corpus in which clips 2 and 5 were damaged after they were listed as found."
    for file in corpus.iterdir(): (tmp_path/file.name).write_bytes(file.read_bytes())
    for k in (2, 5): (tmp_path/f"{k}.mp4").write_bytes(b"damaged")
    return Manifest.from_csv(tmp_path)

def same(a, b) -> bool:
    "Are two batches equal in everything?"
    tensors = [(a.video, b.video), (a.audio, b.audio), (a.labels, b.labels), *((a.present[kind], b.present[kind]) for kind in a.present)]
    return a.ids == b.ids and a.failures == b.failures and all(x.equal(y) for x, y in tensors)


# ---- what a sample is

def test_config_survives_a_dictionary_and_names_what_it_does_not_know():
    assert ClipConfig.from_dict(SMALL.to_dict()) == SMALL and ClipConfig().size == 224
    for wrong, told in (({"frame": 8}, "no field 'frame'; there is frames"), ({"zzz": 8}, "no field 'zzz'; there is frames, stride, fps")):
        with pytest.raises(ValueError, match=told): ClipConfig.from_dict(wrong)
    for wrong, told in ((dict(size=300), "cuts size=300 out of a short side of 256: make it smaller or `resize` larger"), (dict(resize_eval=200), "short side of 200"),
                        (dict(frames=0, samples=0), "there is nothing to read"), (dict(repeats=0), "clips.repeats must be at least 1, not 0"), (dict(windows=0), "clips.windows must be")):
        with pytest.raises(ValueError, match=told): ClipConfig(**wrong)
    assert ClipConfig(frames=0, size=300).samples == 128000   # no picture is cut


# ---- where windows lie (METHOD.md a)

CONFIGS = [ClipConfig(), SMALL, ClipConfig(frames=32, stride=2, fps=30., samples=16000, rate=22050), ClipConfig(frames=1, stride=1, samples=0)]
LENGTHS = (.01, .5, 1., 2.4, 2.56, 3.333, 10., 60.)

@pytest.mark.parametrize("config", CONFIGS)
def test_training_starts_are_all_those_from_which_the_last_picture_lies_inside(config):
    for length in LENGTHS:
        drawn = [random_window(config, length, sample_rng(0, epoch, "clip")) for epoch in range(300)]
        assert all(window.video == window.audio for window in drawn)
        starts = [window.video * config.fps for window in drawn]
        assert starts == pytest.approx(np.round(starts)) and min(starts) >= 0
        places = max(round(length * config.fps) - (config.frames - 1) * config.stride, 1)
        assert max(starts) <= places - 1 + 1e-6
        if places <= 40: assert {round(s) for s in starts} == set(range(places))
        if places > 1000: assert np.histogram(starts, 4, (0, places))[0] == pytest.approx([75] * 4, abs=30)

def test_sound_alone_is_drawn_so_that_it_fits():
    config = ClipConfig(frames=0, samples=16000)
    starts = [random_window(config, 1.5, sample_rng(0, epoch, "clip")).audio for epoch in range(500)]
    assert min(starts) >= 0 and max(starts) <= .5 and max(starts) > .49 and min(starts) < .01
    assert random_window(config, .7, sample_rng(0, 0, "clip")) == Window(0, 0)

@pytest.mark.parametrize("config", CONFIGS)
def test_evaluation_starts_are_those_of_the_release(config):
    for length in LENGTHS:
        for count, size, unit, at in ((round(length * config.fps), config.frames * config.stride, config.fps, 0), (round(length * config.rate), config.samples, config.rate, 1)):
            centre, = spread_windows(config, length)
            assert centre[at] * unit == pytest.approx(max(0, (count - size) // 2))
            for n in (2, 3, 4, 7):
                spread = spread_windows(dataclasses.replace(config, windows=n), length)
                assert [window[at] * unit for window in spread] == pytest.approx([int(k * max(0, count - size) / (n - 1) + 1e-9) for k in range(n)])

def test_windows_of_ten_seconds():
    four = spread_windows(ClipConfig(windows=4), 10.)
    assert spread_windows(ClipConfig(), 10.) == [Window(93 / 25, 1.)] and [round(w.video * 25) for w in four] == [0, 62, 124, 186]
    assert [round(w.audio * 16000) for w in four] == [0, 10666, 21333, 32000]
    assert spread_windows(ClipConfig(windows=2), 1.) == [Window(0, 0)] * 2   # shorter than the window

@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Four seconds of numbered pictures, at 25 and at 50 pictures per second."
    root, noise = tmp_path_factory.mktemp("films"), torch.randn(64000, generator=torch.Generator().manual_seed(0)) / 8
    for fps in (25, 50): write_clip(root/f"{fps}.mp4", counting(100 if fps == 25 else 110), noise if fps == 25 else noise[:35200], fps=fps)
    return root

def rows(root, *names, **columns): return Manifest.from_columns(root, {"id": list(names), "path": [f"{name}.mp4" for name in names], **columns})

def test_evaluation_sees_and_hears_these_windows(films):
    config = ClipConfig(frames=5, stride=4, resize=16, size=16, samples=16000, windows=3)
    data = ClipDataset(rows(films, "25"), config, train=False)
    assert len(data) == 3 and [data.id(k) for k in range(3)] == ["25"] * 3
    for k, first, sound in ((0, 0, 0), (1, 40, 24000), (2, 80, 48000)):
        assert numbers(data[k].video) == [first + 4 * i for i in range(5)]
        assert data[k].waveform.equal(read_audio(films/"25.mp4", sound / 16000, 16000))
    middle = ClipDataset(rows(films, "25"), dataclasses.replace(config, windows=1), train=False)
    assert numbers(middle[0].video) == [40, 44, 48, 52, 56] and middle[0].waveform.equal(data[1].waveform)

def test_pictures_are_chosen_by_time_and_not_by_number(films):
    config = ClipConfig(frames=5, stride=4, resize=16, size=16, samples=0, windows=2)
    data = ClipDataset(rows(films, "50"), config, train=False)   # 2.2 s: the windows start at 0 and at 35 / 25 s
    assert [numbers(data[k].video) for k in range(2)] == [[0, 8, 16, 24, 32], [70, 78, 86, 94, 102]]

def test_a_clip_may_be_a_part_of_a_file(films):
    config = ClipConfig(frames=5, stride=4, resize=16, size=16, samples=8000)
    for cache in (False, True):
        part = ClipDataset(rows(films, "25", start=[1.], end=[2.]), config, train=False, cache=cache, progress=False)[0]
        assert numbers(part.video) == [27, 31, 35, 39, 43]
        torch.testing.assert_close(part.waveform, read_audio(films/"25.mp4", 1.25, 8000), atol=1e-6, rtol=0)


# ---- what is cut out

def test_one_crop_and_one_coin_for_all_pictures():
    step = torch.arange(5)[:, None, None, None] * 100
    ramp = (torch.arange(12) + torch.arange(8)[:, None] * 12 + step).expand(5, 3, 8, 12)
    seen = Counter()
    for epoch in range(1500):
        cut = random_crop_flip(ramp, 6, .25, sample_rng(1, epoch, "clip"))
        assert cut.shape == (5, 3, 6, 6) and (cut - step).equal((cut - step)[:1, :1].expand_as(cut))
        rows_down, columns = (cut[0, 0, :, 0] - cut[0, 0, 0, 0]).tolist(), (cut[0, 0, 0] - cut[0, 0, 0, 0]).tolist()
        assert rows_down == [12 * k for k in range(6)] and columns in ([*range(6)], [-k for k in range(6)])
        seen[(int(cut[0, 0, 0].min()), columns[1] < 0)] += 1
    corners = {12 * top + left for top in range(3) for left in range(7)}
    assert {corner for corner, _ in seen} == corners and sum(n for (_, mirrored), n in seen.items() if mirrored) == pytest.approx(375, abs=60)

def test_flip_never_and_always_and_the_middle():
    ramp = torch.arange(12).expand(2, 3, 8, 12)
    for epoch in range(50):
        never, always = (random_crop_flip(ramp, 8, flip, sample_rng(0, epoch, "clip")) for flip in (0., 1.))
        assert never.flip(-1).equal(always)
    assert centre_crop(ramp, 5)[0, 0, 0].tolist() == [3, 4, 5, 6, 7] and centre_crop(ramp, 8).shape == (2, 3, 8, 8)


# ---- (seed, epoch, id)

def test_random_numbers_have_not_changed():
    assert sample_rng(0, 0, "clip").random(3) == pytest.approx([0.6985666716051435, 0.4931542543499643, 0.4767327734876552], abs=1e-15)
    assert sample_rng(7, 12, "---g-f_I2yQ_000001").integers(0, 1000, 4).tolist() == [11, 163, 7, 480]
    assert epoch_order(10, 0, 0).tolist() == [9, 6, 8, 7, 3, 2, 5, 4, 1, 0] and epoch_order(10, 3, 5).tolist() == [4, 5, 6, 8, 0, 3, 1, 2, 9, 7]

def test_each_of_the_three_matters_and_nothing_else_does():
    first = sample_rng(0, 1, "clip").random(4)
    np.random.seed(3); torch.manual_seed(3)
    assert sample_rng(0, 1, "clip").random(4).tolist() == first.tolist()
    for other in ((1, 1, "clip"), (0, 2, "clip"), (0, 1, "clop"), (0, 11, "clip"), (1, 0, "clip")): assert sample_rng(*other).random(4).tolist() != first.tolist()

def test_a_sample_does_not_depend_on_its_neighbours_or_on_when_it_is_read(corpus):
    manifest = Manifest.from_csv(corpus)
    data, backwards = (ClipDataset(m, SMALL, train=True, seed=4) for m in (manifest, manifest.take([9, 3, 0])))
    for index, row in enumerate([9, 3, 0]):
        for epoch in (2, 0, 1):
            mine, other = backwards[epoch, index], data[epoch, row]
            assert mine.id == other.id and mine.video.equal(other.video) and mine.waveform.equal(other.waveform)
    assert not data[0, 3].video.equal(data[1, 3].video) and data[0, 3].video.equal(data[3].video)
    assert not data[0, 3].video.equal(ClipDataset(manifest, SMALL, train=True, seed=5)[0, 3].video)

def test_batches_are_the_same_whatever_the_number_of_workers(corpus):
    data = ClipDataset(Manifest.from_csv(corpus), SMALL, train=True, seed=5)
    straight = list(make_loader(data, 4, steps=6))
    for workers in (1, 2): assert all(map(same, straight, make_loader(data, 4, steps=6, workers=workers)))
    assert all(map(same, straight[4:], make_loader(data, 4, start_step=4, steps=2, workers=2)))
    assert not all(map(same, straight, make_loader(ClipDataset(data.manifest, SMALL, train=True, seed=6), 4, steps=6)))

def test_memory_holds_what_the_files_hold(corpus):
    manifest = Manifest.from_csv(corpus)
    files, memory = (ClipDataset(manifest, SMALL, train=True, seed=1, cache=cache, progress=False) for cache in (False, True))
    for epoch in range(4):
        for index in range(10):
            a, b = files[epoch, index], memory[epoch, index]
            assert a.video.equal(b.video) and (a.waveform is None) == (b.waveform is None)
            if a.waveform is not None: torch.testing.assert_close(a.waveform, b.waveform, atol=1e-6, rtol=0)

def test_nothing_is_drawn_from_the_global_generators(corpus):
    torch.manual_seed(0); np.random.seed(0)
    for workers in (0, 1): list(make_loader(ClipDataset(Manifest.from_csv(corpus), SMALL, train=True), 5, steps=2, workers=workers))
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(0))) and np.random.rand() == np.random.RandomState(0).rand()


# ---- order

def test_epochs_follow_each_other_without_gap_or_repetition():
    for n, size in ((10, 4), (7, 7), (5, 12), (3, 1)):
        keys = [key for batch in TrainBatches(n, size, seed=2, steps=3 * n) for key in batch]
        assert [epoch for epoch, _ in keys] == [place // n for place in range(len(keys))]
        for epoch in range(len(keys) // n): assert sorted(index for e, index in keys if e == epoch) == list(range(n))
        for start in (1, n): assert list(TrainBatches(n, size, seed=2, start_step=start, steps=5)) == list(TrainBatches(n, size, seed=2, steps=start + 5))[start:]
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist() != epoch_order(50, 1, 1).tolist()

def test_processes_share_a_batch_and_an_evaluation_without_overlap():
    whole = list(TrainBatches(10, 6, seed=1, steps=8))
    for world in (1, 2, 3, 6):
        parts = [list(TrainBatches(10, 6, seed=1, steps=8, rank=rank, world_size=world)) for rank in range(world)]
        assert all(sorted(key for part in parts for key in part[step]) == sorted(whole[step]) for step in range(8))
        passes = [[key for batch in EvalBatches(10, 3, rank, world) for key in batch] for rank in range(world)]
        assert sorted(index for each in passes for _, index in each) == list(range(10))
        assert [len(list(EvalBatches(10, 3, rank, world))) for rank in range(world)] == [len(EvalBatches(10, 3, rank, world)) for rank in range(world)]

def test_without_end_there_is_no_length(corpus):
    endless = make_loader(ClipDataset(Manifest.from_csv(corpus), SMALL, train=True), 4)
    with pytest.raises(TypeError, match="say how many steps"): len(endless)
    assert [len(batch.ids) for batch, _ in zip(endless, range(5))] == [4] * 5


# ---- several crops of one window

def repeating(manifest, repeats, **changes): return ClipDataset(manifest, dataclasses.replace(SMALL, repeats=repeats, **changes), train=True, seed=5, progress=False)

@pytest.fixture
def opened(monkeypatch) -> list:
    "The files that are opened."
    paths, before = [], Media.__init__
    monkeypatch.setattr(Media, "__init__", lambda self, path, *rest, **more: (paths.append(path), before(self, path, *rest, **more))[1])
    return paths

def test_random_numbers_of_repetitions_have_not_changed():
    assert sample_rng(0, 0, "clip", 0).random(2).tolist() == sample_rng(0, 0, "clip").random(2).tolist()
    assert sample_rng(0, 0, "clip", 1).random(2) == pytest.approx([0.15222227747453632, 0.32926899586603375], abs=1e-15)
    first = [sample_rng(0, 0, id, k).random() for id in ("clip", "1/clip", "+1/clip") for k in range(5)] + [sample_rng(0, k, "clip").random() for k in range(1, 12)]
    assert len(set(first)) == len(first)

@pytest.mark.parametrize("jitter", [None, (.9, 1.33)])
def test_crops_of_a_clip_share_its_window_and_the_first_is_the_ordinary_sample(corpus, opened, jitter):
    data, plain = (repeating(Manifest.from_csv(corpus), r, scale_jitter=jitter) for r in (3, 1))
    for epoch in range(3):
        for index in range(10):
            opened.clear()
            crops = data.repeated((epoch, index))
            assert len(opened) == 1 and len(crops) == 3
            assert crops[0].video.equal(data[epoch, index].video) and crops[0].video.equal(plain[epoch, index].video)
            assert all(c.id == str(index) and c.labels == [index % 2] and (index == 6 or c.waveform.equal(plain[epoch, index].waveform)) for c in crops)
            rng = sample_rng(5, epoch, str(index))
            window = data._read(index, lambda length: random_window(SMALL, length, rng)).video
            for k, crop in enumerate(crops):   # every crop draws, in this order: factors of the sides if any, top, left, mirror
                rng = sample_rng(5, epoch, str(index), k) if k else rng
                assert crop.video.equal(random_crop_flip(scale_jitter(window, jitter, rng) if jitter else window, 16, .5, rng))

def test_crops_are_independent_and_lie_everywhere(corpus):
    ramp = (torch.arange(32) + 3 * torch.arange(24)[:, None]).expand(4, 3, 24, 32).byte()
    data = repeating(Manifest.from_csv(corpus), 4)
    data._read = lambda row, choose: (choose(2.), type("Clip", (), {"video": ramp, "waveform": None}))[1]
    crops = [[c.video for c in data.repeated((epoch, 0))] for epoch in range(300)]
    mirrored = np.array([[bool(c[0, 0, 0, 0] > c[0, 0, 0, 1]) for c in each] for each in crops])
    corner = np.array([[int(c[0, 0, 0].min()) for c in each] for each in crops])
    assert mirrored.mean(0) == pytest.approx([.5] * 4, abs=.1) and (corner.max(0) == 3 * 8 + 16).any() and (corner.min(0) == 0).any()
    apart = ~np.eye(4, dtype=bool)
    assert abs(np.corrcoef(corner.T)[apart]).max() < .2 and abs(np.corrcoef(mirrored.T)[apart]).max() < .2

def test_a_batch_of_crops_has_the_clips_that_a_smaller_batch_would_have(corpus):
    manifest = Manifest.from_csv(corpus)
    plain, thrice = repeating(manifest, 1), repeating(manifest, 3)
    whole, small = list(make_loader(thrice, 12, steps=5)), list(make_loader(plain, 4, steps=5))   # 12 samples of 4 clips; two epochs
    for many, few in zip(whole, small):
        a, b, c, d = few.ids
        assert many.ids == [a, b, c, d] * 3
        assert many.video[:4].equal(few.video) and many.audio[:4].equal(few.audio) and many.labels[:4].equal(few.labels) and many.present["audio"][:4].equal(few.present["audio"])
        assert not many.video[8:].equal(few.video) and many.audio[8:].equal(few.audio)
    assert sorted(id for batch in whole for id in batch.ids) == sorted(str(k) for k in range(10) for _ in range(6))   # an epoch is one pass

@pytest.mark.parametrize("cache", [False, True])
def test_batches_of_crops_do_not_depend_on_workers_cache_or_where_one_goes_on(corpus, cache):
    manifest = Manifest.from_csv(corpus)
    data = repeating(manifest, 2)
    straight, other = list(make_loader(data, 6, steps=7)), ClipDataset(manifest, data.config, train=True, seed=5, cache=cache, progress=False)
    close = lambda a, b: a.ids == b.ids and a.video.equal(b.video) and torch.allclose(a.audio, b.audio, atol=1e-6)   # as in memory
    for start in (0, 1, 4, 6):
        for workers in (0, 2): assert all(map(close if cache else same, straight[start:], make_loader(other, 6, start_step=start, steps=7 - start, workers=workers)))

def test_processes_share_batches_of_crops(corpus):
    data = repeating(Manifest.from_csv(corpus), 2)
    whole = list(make_loader(data, 12, steps=4))
    for world in (2, 3):
        parts = [list(make_loader(data, 12, steps=4, rank=rank, world_size=world)) for rank in range(world)]
        for step, batch in enumerate(whole):
            rows = lambda b: sorted((id, x.sum().item()) for id, x in zip(b.ids, b.video.long()))
            assert sorted(row for part in parts for row in rows(part[step])) == rows(batch)
            assert all(len(part[step].ids) == 12 // world and set(Counter(part[step].ids).values()) <= {2, 4} for part in parts)

def test_processes_mix_the_same_crops_as_one(corpus):
    data, partners = repeating(Manifest.from_csv(corpus), 3), []
    for world in (1, 2):   # batches of 12 samples of 4 clips
        batches = zip(*(make_loader(data, 12, steps=4, rank=rank, world_size=world) for rank in range(world)))
        rows = [[list(zip(part.ids, part.video.long().sum((1, 2, 3, 4)).tolist())) for part in parts] for parts in batches]
        partners.append([sorted(pair for part in parts for pair in zip(part, part[::-1])) for parts in rows])
    assert partners[0] == partners[1] and all(a != b for pairs in partners[0] for (a, _), (b, _) in pairs)

@pytest.mark.parametrize("size, world, told", [(7, 1, "batch_size=7 in 1 process cannot .* clips.repeats=2 times: choose a multiple of 2"), (6, 2, "batch_size=6 in 2 processes cannot .* choose a multiple of 4")])
def test_a_batch_that_cannot_be_made_of_repeated_clips_is_told(corpus, size, world, told):
    with pytest.raises(ValueError, match=told): make_loader(repeating(Manifest.from_csv(corpus), 2), size, world_size=world)
    assert make_loader(repeating(Manifest.from_csv(corpus), 1), size, steps=3, world_size=world).batches.batch_size == size

def test_mixup_partners_are_of_different_clips():
    for clips in range(1, 10):
        for repeats in range(1, 8):
            batch = interleave([[(clip, k) for k in range(repeats)] for clip in range(clips)])
            assert sorted(batch) == [(clip, k) for clip in range(clips) for k in range(repeats)] and [k for _, k in batch] == [k for k in range(repeats) for _ in range(clips)]
            same_clip = sum(a == b for (a, _), (b, _) in zip(batch, batch[::-1]))
            assert same_clip == (clips * repeats if clips == 1 else clips * repeats % 2)   # of an odd batch, the middle is its own partner
            if clips % 2 == 0: assert all(a + b == clips - 1 for (a, _), (b, _) in zip(batch, batch[::-1]))   # the partner without repetitions
    assert interleave([]) == []

@pytest.mark.parametrize("workers", [0, 2])
def test_a_repeated_clip_that_cannot_be_read_is_one_failure(damaged, workers):
    data = repeating(damaged, 3)
    kept = list(make_loader(data, 15, steps=4, workers=workers, max_failed=.2))   # 5 clips a batch, two epochs
    keys = [[str(index) for _, index in batch] for batch in TrainBatches(10, 5, seed=5, steps=4)]
    assert [[f.id for f in batch.failures] for batch in kept] == [[id for id in ids if id in "25"] for ids in keys]
    assert [batch.ids[:len(batch.ids) // 3] for batch in kept] == [[id for id in ids if id not in "25"] for ids in keys]
    assert all(set(Counter(batch.ids).values()) == {3} for batch in kept) and data.coverage == (8, 10)
    for batch in kept:
        if len(batch.ids) % 2 == 0: assert all(a != b for a, b in zip(batch.ids, batch.ids[::-1]))

@pytest.mark.parametrize("windows", [1, 2])
def test_evaluation_does_not_repeat(corpus, windows):
    once, thrice = (ClipDataset(Manifest.from_csv(corpus), dataclasses.replace(SMALL, repeats=r, windows=windows), train=False) for r in (1, 3))
    assert len(once) == len(thrice) == 10 * windows and thrice.repeats == 1
    assert all(map(same, make_loader(once, 4), make_loader(thrice, 4)))


# ---- what cannot be read

@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_clip_that_cannot_be_read_is_counted_named_and_never_replaced(damaged, workers):
    data, whole = (ClipDataset(damaged, SMALL, train=True, seed=3) for _ in range(2))
    kept = list(make_loader(data, 5, steps=6, workers=workers, max_failed=.2))   # three epochs
    keys = [[str(index) for _, index in batch] for batch in TrainBatches(10, 5, seed=3, steps=6)]
    assert [batch.ids for batch in kept] == [[id for id in ids if id not in "25"] for ids in keys]
    assert [[f.id for f in batch.failures] for batch in kept] == [[id for id in ids if id in "25"] for ids in keys]
    assert data.coverage == (8, 10) and {f.id: f.reason for f in data.failures.values()} == {"2": "undecodable", "5": "undecodable"}
    for batch in kept:
        assert len(batch.video) == len(batch.audio) == len(batch.labels) == len(batch.ids)
        assert batch.labels.tolist() == [int(id) % 2 for id in batch.ids]
    with pytest.raises(MediaError, match="2.mp4"): whole[2]

def test_more_than_agreed_is_an_error_that_names_them(damaged):
    with pytest.raises(TooManyFailures) as caught: list(make_loader(ClipDataset(damaged, SMALL, train=True), 5, steps=4))
    said = str(caught.value)
    assert "of 10 clips cannot be read, more than max_failed=0.01 allows" in said and ("2: " in said or "5: " in said) and said.endswith("or raise max_failed.") and "\n" not in said

def test_a_batch_of_which_nothing_is_left_is_an_error(damaged):
    with pytest.raises(TooManyFailures, match="of 10 clips cannot be read, among them a whole batch"):
        list(make_loader(ClipDataset(damaged, SMALL, train=True), 1, steps=10, max_failed=1.))

@pytest.mark.parametrize("cache", [False, True])
def test_evaluation_goes_through_and_knows_what_it_did_not_see(damaged, cache):
    data = ClipDataset(damaged, dataclasses.replace(SMALL, windows=2), train=False, cache=cache, progress=False)
    batches = list(make_loader(data, 3))
    assert [id for batch in batches for id in batch.ids] == [str(k) for k in range(10) if k not in (2, 5) for _ in range(2)]
    assert data.coverage == (8, 10) and sorted(data.failures) == ["2", "5"]
    checked = ClipDataset(damaged.check(), SMALL, train=False)
    assert checked.coverage == (8, 10) and len(checked) == 8   # known before, and counted all the same

def test_missing_files_are_counted(corpus, tmp_path):
    names = [str(k) for k in range(10)] + ["gone"]
    assert ClipDataset(rows(corpus, *names), SMALL, train=True).coverage == (10, 11)
    with pytest.raises(ValueError, match=r"none of the 2 clips can be read \(2 missing\); is this the folder of the media\?"): ClipDataset(rows(tmp_path, "a", "b"), SMALL, train=True)


# ---- what is absent

@pytest.mark.parametrize("cache", [False, True])
def test_a_clip_without_sound_is_absent_and_not_silent(corpus, cache):
    data = ClipDataset(Manifest.from_csv(corpus), SMALL, train=False, cache=cache, progress=False)
    assert data[6].waveform is None and data[6].video is not None
    assert data[7].waveform.shape == (8000,) and data[7].waveform.abs().max() < 1e-3   # this one is silent
    batch, = make_loader(data, 10)
    assert batch.present["audio"].tolist() == [k != 6 for k in range(10)] and batch.present["video"].all()
    assert not batch.audio[6].any() and batch.inputs.keys() == {"video", "audio"}

def test_sound_alone_leaves_out_who_has_none(corpus):
    listening = dataclasses.replace(SMALL, frames=0)
    known = ClipDataset(Manifest.from_csv(corpus).check(), listening, train=True)
    assert known.coverage == (9, 10) and "6" not in known.manifest["id"]
    found_out = ClipDataset(Manifest.from_csv(corpus), listening, train=True)
    batches = list(make_loader(found_out, 5, steps=2, max_failed=.1))
    assert found_out.failures["6"].reason == "no audio" and sorted(id for batch in batches for id in batch.ids) == [str(k) for k in range(10) if k != 6]
    assert batches[0].video is None and batches[0].inputs.keys() == {"audio"} and batches[0].present.keys() == {"audio"}

def test_pictures_alone_need_no_sound(corpus):
    data = ClipDataset(Manifest.from_csv(corpus).check(), dataclasses.replace(SMALL, samples=0), train=False)
    batch, = make_loader(data, 10)
    assert data.coverage == (10, 10) and batch.audio is None and batch.present.keys() == {"video"}


# ---- labels

def test_labels_are_numbers_of_sorted_classes_and_absence_is_said(corpus):
    one = rows(corpus, "0", "1", "2", labels=[["cat"], [], ["ant"]])
    batch, = make_loader(ClipDataset(one, SMALL, train=False), 3)
    assert batch.labels.tolist() == [1, -1, 0] and one.classes == ("ant", "cat")
    many = rows(corpus, "0", "1", "2", labels=[["cat", "bee"], [], ["ant"]])
    batch, = make_loader(ClipDataset(many, SMALL, train=False, multilabel=True), 3)
    assert batch.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"clip '0' has 2 labels \(cat, bee\); say multilabel=True"): ClipDataset(many, SMALL, train=True)
    unlabelled, = make_loader(ClipDataset(rows(corpus, "0", "1"), SMALL, train=False), 2)
    assert unlabelled.labels.tolist() == [-1, -1]

def test_a_batch_moves_whole(corpus):
    batch = next(iter(make_loader(ClipDataset(Manifest.from_csv(corpus), SMALL, train=False), 3)))
    moved = batch.to("meta")
    assert all(x.device.type == "meta" for x in (moved.video, moved.audio, moved.labels, *moved.present.values())) and moved.ids == batch.ids

def test_there_is_no_sample_beyond_the_last(corpus):
    data = ClipDataset(Manifest.from_csv(corpus), SMALL, train=True)
    for index in (10, -1):
        with pytest.raises(IndexError, match=f"10 samples, and no number {index}"): data[index]
