"Augmentation: identity without strength, ranges, the same change for all pictures of a clip, chance that follows from (seed, epoch, id) or (seed, step) alone; and verb/noun heads."
import colorsys, json
from dataclasses import replace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avmae.data.augment import ColourConfig, blank, change_colours, change_contrast, change_saturation, circular_shift, draw_colours, longest_mask, recolour, scale_jitter
from avmae.data.clips import ClipConfig, ClipDataset, random_crop_flip, random_window, sample_rng
from avmae.data.loader import Batch, make_loader
from avmae.data.manifest import Manifest
from avmae.data.media import write_clip
from avmae.train.config import override
from avmae.train.engine import fit
from avmae.train.evaluate import evaluate, head_scores, logits_of
from avmae.train.feed import check_classes, open_manifest, train_data, write_smoke_corpus
from avmae.train.metrics import joint_top_k_correct, top_k_correct
from avmae.train.recipes import get_recipe
from avmae.train.state import begin
from avmae.train.step import Finetuning, Pretraining, mix, part_of, total


def generator(seed=0): return torch.Generator().manual_seed(seed)

def pictures(t=3, h=24, w=32, seed=0):
    "Smooth u8 pictures of many colours."
    coarse = torch.rand(1, 3, 4, 5, generator=generator(seed)) * 255
    still = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=True)
    return (still + 3 * torch.arange(t)[:, None, None, None]).clamp(0, 255).byte()


# ---- scale

def test_scale_jitter_of_one_is_the_identity():
    assert scale_jitter(pictures(), (1., 1.), np.random.default_rng(0)).equal(pictures())

@pytest.mark.parametrize("factors", [(.9, 1.33), (.5, .5), (1.2, 2.)])
def test_sides_lie_in_the_range_and_are_independent(factors):
    sizes = np.array([scale_jitter(pictures(1, 100, 60), factors, np.random.default_rng(k)).shape[2:] for k in range(500)])
    for side, n in zip(sizes.T, (100, 60)):
        assert int(factors[0] * n) <= side.min() and side.max() <= int(factors[1] * n)
    if factors[0] < factors[1]: assert abs(np.corrcoef(sizes.T)[0, 1]) < .15

def test_all_pictures_are_scaled_alike_and_linearly():
    video = pictures(5)
    scaled = scale_jitter(video, (.9, 1.33), np.random.default_rng(1))
    assert scaled.dtype == torch.uint8 and len(scaled) == 5
    for k in range(5): assert scaled[k].equal(scale_jitter(video[k:k + 1], (.9, 1.33), np.random.default_rng(1))[0])
    exact = F.interpolate(video.float(), size=scaled.shape[2:], mode="bilinear", align_corners=False)
    assert (scaled - exact).abs().max() <= 1


# ---- samples

@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("films")
    for k in range(5): write_clip(root/f"{k}.mp4", pictures(30, seed=k), torch.sin(torch.arange(19200) * .05 * (k + 1)) / 2)
    (root/"labels.csv").write_text("path,label,split\n" + "".join(f"{k}.mp4,a,train\n" for k in range(5)))
    return Manifest.from_csv(root)

PLAIN = ClipConfig(frames=3, stride=2, resize=24, size=16, samples=8000)
JITTERED = replace(PLAIN, scale_jitter=(.9, 1.33))

def by_hand(data, epoch, row, factors):
    "A sample, with its random numbers taken in the order that recorded numbers rely on: window, factors of the sides if any, top, left, mirror."
    rng = sample_rng(data.seed, epoch, data.id(row))
    clip = data._read(row, lambda length: random_window(data.config, length, rng))
    return random_crop_flip(scale_jitter(clip.video, factors, rng) if factors else clip.video, data.config.size, data.config.flip, rng)

@pytest.mark.parametrize("factors", [None, (1., 1.), (.9, 1.33)])
def test_order_of_random_numbers(films, factors):
    data = ClipDataset(films, replace(PLAIN, scale_jitter=factors), train=True, seed=3)
    for epoch in range(3):
        for row in range(5): assert data[epoch, row].video.equal(by_hand(data, epoch, row, factors))

def test_jitter_changes_the_pictures_and_not_the_sound(films):
    plain, jittered = (ClipDataset(films, config, train=True, seed=3) for config in (PLAIN, JITTERED))
    changed = 0
    for row in range(5):
        a, b = plain[1, row], jittered[1, row]
        assert a.video.shape == b.video.shape and a.waveform.equal(b.waveform)
        changed += not a.video.equal(b.video)
    assert changed >= 4

def test_evaluation_is_not_jittered(films):
    plain, jittered = (ClipDataset(films, config, train=False) for config in (PLAIN, JITTERED))
    assert all(plain[k].video.equal(jittered[k].video) for k in range(5))

def test_samples_do_not_depend_on_workers_order_or_cache(films):
    data = ClipDataset(films, JITTERED, train=True, seed=1)
    batches = [list(make_loader(ClipDataset(films, JITTERED, train=True, seed=1, cache=cache, progress=False), 3, workers=n, steps=5)) for n, cache in ((0, False), (2, False), (0, True))]
    for one, two, held in zip(*batches): assert one.ids == two.ids == held.ids and one.video.equal(two.video) and one.video.equal(held.video)
    alone = ClipDataset(films.take([4]), JITTERED, train=True, seed=1)
    assert data[6, 4].video.equal(alone[6, 0].video) and not data[6, 4].video.equal(data[7, 4].video)


# ---- colours

RELEASED = ColourConfig(jitter=.8, grey=.1)

def rgb(seed=0, t=2): return torch.rand(t, 3, 6, 7, generator=generator(seed))

def naive(picture, brightness, saturation, contrast, hue):
    "One picture [3,h,w], pixel by pixel in float64."
    x = picture.permute(1, 2, 0).double().numpy() + brightness
    def each(change):
        for pixel in x.reshape(-1, 3): pixel[:] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
    each(lambda h, s, v: (h, min(s * saturation, 1) if v > 0 else 0, v))   # what is darker than black has no colour
    x = (x - x.mean((0, 1))) * contrast + x.mean((0, 1))
    each(lambda h, s, v: ((h + hue) % 1, s, v))
    return torch.from_numpy(x.clip(0, 1)).permute(2, 0, 1).float()

@pytest.mark.parametrize("change", [(0, 1, 1, 0), (.125, .6, .6, -.2), (-.125, 1.4, 1.4, .2), (.05, 1.3, 1.2, .5), (-.3, .7, 1.4, -.5), (.3, 1.4, .6, .1)])
def test_colours_are_those_of_the_standard_library(change):
    for picture, changed in zip(rgb(t=4), change_colours(rgb(t=4), *change)): torch.testing.assert_close(changed, naive(picture, *change), rtol=0, atol=2e-5)

def test_neutral_changes_are_the_identity():
    for changed in (change_saturation(rgb(), 1.), change_contrast(rgb(), 1.), change_colours(rgb(), 0., 1., 1., 0.)): torch.testing.assert_close(changed, rgb(), rtol=0, atol=1e-6)

def test_saturation_keeps_grey_and_the_largest_channel():
    grey = torch.full((1, 3, 2, 2), .4)
    assert change_saturation(grey, 1.4).equal(grey)
    for factor in (.5, 1.4, 100.):
        changed = change_saturation(rgb(), factor)
        torch.testing.assert_close(changed.amax(-3), rgb().amax(-3))
        assert changed.min() >= -1e-6
    torch.testing.assert_close(change_saturation(rgb(), 0.), rgb().amax(-3, keepdim=True).expand_as(rgb()))

def test_contrast_keeps_the_mean_of_each_channel_and_picture():
    for factor in (.6, 1.4): torch.testing.assert_close(change_contrast(rgb(), factor).mean((-2, -1)), rgb().mean((-2, -1)))

def test_extreme_pixels_stay_finite_and_in_range():
    corners = torch.tensor([[r, g, b] for r in (0., .125, 1.) for g in (0., .125, 1.) for b in (0., .125, 1.)]).T.reshape(1, 3, 3, 9)
    for change in ((-.125, .6, 1., .2), (-.125, 1.4, 1., -.2), (.125, 1.4, 1.4, .5), (-1., 1., 1., .1), (-.125, 1., 1., 0.)):
        changed = change_colours(corners, *change)
        assert changed.isfinite().all() and 0 <= changed.min() and changed.max() <= 1

def test_draws_have_the_stated_probabilities_and_ranges():
    drawn = draw_colours(RELEASED, 20_000, seed=5)
    assert abs(drawn["jitter"].double().mean() - .8) < .01 and abs(drawn["grey"].double().mean() - .1) < .01
    assert abs((drawn["jitter"] & drawn["grey"]).double().mean() - .08) < .01   # two coins
    for name, low, high in (("brightness", -32 / 255, 32 / 255), ("saturation", .6, 1.4), ("contrast", .6, 1.4), ("hue", -.2, .2)):
        x = drawn[name]
        assert low <= x.min() < low + .01 * (high - low) and high - .01 * (high - low) < x.max() <= high and abs(x.mean() - (low + high) / 2) < .02 * (high - low)
    assert all(x.equal(draw_colours(RELEASED, 20_000, seed=5)[name]) for name, x in drawn.items())

@pytest.mark.parametrize("config", [RELEASED, ColourConfig(jitter=1.), ColourConfig(grey=1.), ColourConfig()])
def test_recolouring_a_batch(config):
    clips = rgb(1, 16).view(8, 2, 3, 6, 7) * 2 - 1
    before, drawn = clips.clone(), draw_colours(config, 8, seed=2)
    changed = recolour(clips, drawn)
    assert clips.equal(before) and changed.shape == clips.shape and -1 <= changed.min() and changed.max() <= 1
    for i in range(8):
        if not (drawn["jitter"][i] or drawn["grey"][i]): assert changed[i].equal(clips[i])
        if drawn["grey"][i]: assert torch.allclose(changed[i, :, 0], changed[i, :, 1]) and torch.allclose(changed[i, :, 0], changed[i, :, 2])
        one = {name: x[i:i + 1] for name, x in drawn.items()}
        assert changed[i].equal(recolour(clips[i:i + 1], one)[0])                  # a clip does not depend on its batch
        for k in range(2): torch.testing.assert_close(changed[i, k], recolour(clips[i:i + 1, k:k + 1], one)[0, 0])   # nor a picture on its clip

def test_grey_is_the_luma_of_the_release():
    clips = rgb(3, 2)[None] * 2 - 1
    changed = recolour(clips, draw_colours(ColourConfig(grey=1.), 1, seed=0))
    luma = torch.einsum("c,tchw->thw", torch.tensor([.2989, .5870, .1140]), rgb(3, 2))
    torch.testing.assert_close((changed[0, :, 0] + 1) / 2, luma)


# ---- spectrograms

def test_circular_shift_is_a_roll_and_can_be_undone():
    x, shift = torch.randn(6, 11, 4, generator=generator()), torch.tensor([0, 1, 5, 10, 11, -3])
    shifted = circular_shift(x, shift)
    assert all(a.equal(b.roll(s, 0)) for a, b, s in zip(shifted, x, shift.tolist()))
    assert circular_shift(shifted, -shift).equal(x)

@pytest.mark.parametrize("n, count, longest", [(128, 1, 48), (128, 2, 36), (800, 4, 48), (30, 3, 48)])
def test_masks_have_the_released_lengths_and_places(n, count, longest):
    kept = blank(4000, n, count, longest, seed=1)
    hidden = (kept == 0).sum(1)
    assert hidden.max() <= count * (min(longest, n) - 1) and set(kept.unique().tolist()) == {0., 1.}
    if count == 1:
        assert set(hidden.tolist()) == set(range(min(longest, n)))                          # int(u * longest): each length alike
        assert np.histogram(hidden, longest)[0] == pytest.approx([4000 / longest] * longest, abs=45)
        assert ((kept[:, 1:] != kept[:, :-1]).sum(1) <= 2).all()                            # one run
    ends = 1 - kept.mean(0)
    assert ends[0] > 0 and ends[-1] > 0

def test_longest_time_mask():
    assert [longest_mask(800, 48, ratio) for ratio in (0., .01, .05, 1.)] == [0, 8, 40, 48] and longest_mask(20, 48, 1.) == 20


# ---- what recipes do with it

def batch(recipe, b=6, seed=0) -> Batch:
    "Made-up clips of a recipe's size."
    c, g, classes = recipe.clips, generator(seed), recipe.model.num_classes
    labels = torch.randint(0, classes, (b,), generator=g) if isinstance(classes, int) else torch.cat(
        [F.one_hot(torch.randint(0, classes[head], (b,), generator=g), classes[head]) for head in sorted(classes)], 1).float()
    return Batch(torch.randint(0, 256, (b, c.frames, 3, c.size, c.size), dtype=torch.uint8, generator=g), torch.randn(b, c.samples, generator=g), labels,
                 [str(k) for k in range(b)], {m: torch.ones(b, dtype=torch.bool) for m in ("video", "audio")}, [])

OPTIONS = {"colour.jitter": 1., "colour.grey": 1., "circular_shift": True, "freq_masks": 2, "time_masks": 2}

@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_its_modality_and_only_that(option):
    made = get_recipe("smoke_finetune", **{option: OPTIONS[option]})
    task, clips = Finetuning(made), batch(made)
    inputs = task.frontend(clips.inputs)
    changed = task.augment(inputs, task.draw(clips, 4))
    touched = "video" if option.startswith("colour") else "audio"
    assert not changed[touched].equal(inputs[touched])
    assert all(changed[m].equal(inputs[m]) for m in inputs if m != touched)

@pytest.mark.parametrize("path, other", [("colour.brightness", .5), ("colour.saturation", (.1, .2)), ("colour.contrast", (2., 3.)), ("colour.hue", .5), ("freq_mask_bins", 3),
                                         ("time_mask_frames", 5), ("time_mask_ratio", .1), ("seed", 1)])
def test_every_parameter_of_an_option_has_an_effect(path, other):
    on = get_recipe("smoke_finetune", **OPTIONS | {"colour.grey": 0.})
    clips, results = batch(on), []
    for made in (on, override(on, {path: other})):
        task = Finetuning(made)
        results.append(task.augment(task.frontend(clips.inputs), task.draw(clips, 4)))
    assert any(not results[0][m].equal(results[1][m]) for m in results[0])

def test_options_off_leave_the_batch_alone():
    made = get_recipe("smoke_finetune")
    task, clips = Finetuning(made), batch(made)
    inputs, drawn = task.frontend(clips.inputs), task.draw(clips, 4)
    assert drawn["colours"] == drawn["sound"] == {} and all(x.equal(inputs[m]) for m, x in task.augment(inputs, drawn).items())

def test_released_time_masks_are_inert_and_ratio_one_is_not():
    made = get_recipe("smoke_finetune", time_masks=4, time_mask_ratio=0.)
    clips = batch(made)
    assert Finetuning(made).draw(clips, 0)["sound"] == {}
    assert (Finetuning(override(made, {"time_mask_ratio": 1.})).draw(clips, 0)["sound"]["time"] == 0).any()

def test_masks_come_after_the_shift_and_are_zero():
    made = get_recipe("smoke_finetune", **{"circular_shift": True, "freq_masks": 2, "time_masks": 2})
    task, clips = Finetuning(made), batch(made)
    inputs, drawn = task.frontend(clips.inputs), task.draw(clips, 4)
    sound, kept = drawn["sound"], drawn["sound"]["mels"] * drawn["sound"]["time"]
    assert task.augment(inputs, drawn)["audio"].equal(circular_shift(inputs["audio"], sound["shift"]) * kept) and (kept == 0).any()
    assert 0 <= sound["shift"].min() and sound["shift"].max() < inputs["audio"].shape[1]

def test_changes_follow_from_seed_step_and_id_and_not_from_the_neighbours():
    made = get_recipe("smoke_finetune", **OPTIONS, batch_size=6, mixup=0.)
    clips, flat = batch(made), lambda drawn: torch.cat([x.double().flatten() for kind in ("colours", "sound") for x in drawn[kind].values()])
    task = Finetuning(made)
    torch.rand(10)
    assert flat(task.draw(clips, 3)).equal(flat(Finetuning(made).draw(clips, 3))) and not flat(task.draw(clips, 3)).equal(flat(task.draw(clips, 4)))
    whole = task.draw(clips, 3)
    for rows in ([0, 5], [4, 2, 1], [3]):
        part = task.draw(part_of(clips, rows), 3)
        for kind in ("colours", "sound"):
            for name, x in whole[kind].items(): assert part[kind][name].equal(x[rows])

def test_crops_of_the_same_clip_are_changed_differently():
    made = get_recipe("smoke_finetune", **OPTIONS, mixup=0.)
    clips = batch(made, 4)._replace(ids=["a", "b", "a", "b"])
    for kind, drawn in Finetuning(made).draw(clips, 3).items():
        for name in {"hue", "shift", "time"} & drawn.keys(): assert not drawn[name][0].equal(drawn[name][2])
    masks = Pretraining(get_recipe("smoke_pretrain")).draw(clips, 3)["masks"]
    assert all(not mask.drop[0].equal(mask.drop[2]) for mask in masks.values())

@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_single_modality_is_augmented_too(modality):
    made = get_recipe("smoke_finetune", **OPTIONS, **{"model.modalities": [modality]})
    task, clips = Finetuning(made).train(), batch(made)
    clips = clips._replace(**{m: None for m in ("video", "audio") if m != modality}, present={modality: clips.present[modality]})
    drawn = task.draw(clips, 0)
    assert bool(drawn["colours"]) == (modality == "video") and bool(drawn["sound"]) == (modality == "audio")
    assert total(task(task.frontend(clips.inputs), clips, drawn).losses, task.weights).isfinite()

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return str(root)

ALL_ON = OPTIONS | {"clips.resize": 40, "clips.scale_jitter": (.9, 1.33), "colour.jitter": .8, "colour.grey": .1, "steps": 3}

def test_training_with_everything_on_does_not_depend_on_workers(corpus, tmp_path):
    runs = [fit(get_recipe("smoke_finetune", **ALL_ON, **{"corpus.root": corpus, "workers": n, "cache": n == 0}), tmp_path/str(n), device="cpu", progress=False) for n in (0, 2)]
    assert runs[0]["weights"] == runs[1]["weights"] and runs[0]["result"] == runs[1]["result"]

@pytest.mark.parametrize("name", ["smoke_pretrain", "smoke_finetune"])
def test_training_on_repeated_crops_does_not_depend_on_workers_or_cache(corpus, tmp_path, name):
    options = {"corpus.root": corpus, "clips.resize": 40, "clips.repeats": 2}
    runs = [fit(get_recipe(name, **options, workers=n, cache=n == 0), tmp_path/str(n), device="cpu", progress=False) for n in (0, 2)]
    once = fit(get_recipe(name, **options | {"clips.repeats": 1}), tmp_path/"once", device="cpu", progress=False)
    assert runs[0]["weights"] == runs[1]["weights"] != once["weights"]
    assert (runs[0]["steps"], once["steps"]) == (2 * 16 // 2, 2 * 16 // 4)   # two epochs of 16 clips
    last = [json.loads(line)["epoch"] for line in (tmp_path/"0"/"metrics.jsonl").read_text().splitlines()][-1]
    assert last == 15 * 2 / 16

def test_pretraining_can_be_jittered(corpus, tmp_path):
    losses = [fit(get_recipe("smoke_pretrain", **{"corpus.root": corpus, "clips.resize": 40, "clips.scale_jitter": jitter, "steps": 2}), tmp_path/str(k), device="cpu", progress=False)["result"]
              for k, jitter in enumerate((None, (.9, 1.33)))]
    assert losses[0] != losses[1]

@pytest.mark.parametrize("scale", [1., 3.])
def test_pretrained_audio_embedding_is_scaled(corpus, tmp_path, scale):
    fit(get_recipe("smoke_pretrain", **{"corpus.root": corpus, "steps": 1}), tmp_path/"pre", device="cpu", progress=False)
    made = get_recipe("smoke_finetune", **{"corpus.root": corpus, "init_from": str(tmp_path/"pre"), "init_audio_scale": scale})
    model = begin(made, open_manifest(made.corpus), 16).task.model
    plain = begin(override(made, {"init_audio_scale": 1.}), open_manifest(made.corpus), 16).task.model
    for (name, w), other in zip(model.state_dict().items(), plain.state_dict().values()):
        assert w.equal(other * scale if name == "embed.patch.audio.weight" else other), name
    # three equal channels under the kernel, repeated: what the release computes
    patch = torch.randn(5, 256, generator=generator())
    kernel = plain.embed.patch["audio"]
    torch.testing.assert_close(model.embed.patch["audio"](patch) - kernel.bias, sum(patch @ kernel.weight.T for _ in range(int(scale))), rtol=1e-4, atol=1e-5)


# ---- several heads

HEADS = {"verb": 5, "noun": 7}

@pytest.mark.parametrize("mixup", [0., .5])
def test_loss_of_several_heads_is_the_mean_of_their_cross_entropies(mixup):
    made = get_recipe("smoke_finetune", **{"model.num_classes": HEADS, "label_smoothing": .3, "mixup": mixup})
    task, clips = Finetuning(made).train(), batch(made)
    torch.nn.init.normal_(task.model.head.weight, std=.5, generator=generator())
    drawn = task.draw(clips, 2)
    result = task(task.frontend(clips.inputs), clips, drawn)
    rows = {"noun": clips.labels[:, :7], "verb": clips.labels[:, 7:]}   # the corpus sorts its classes
    each = []
    for m in ("video", "audio"):
        weight = drawn["weights"][m] if mixup else 1.
        logits = task.model({k: mix(x, drawn["weights"][k]) if mixup else x for k, x in task.frontend(clips.inputs).items()})[m]
        smooth = {h: mix(y * .7 + .3 / y.shape[1], weight) for h, y in rows.items()}
        each.append(sum(F.cross_entropy(logits[h], smooth[h]) for h in HEADS) / 2)
        torch.testing.assert_close(result.losses[m], each[-1])
    torch.testing.assert_close(total(result.losses, task.weights), sum(each) / 2)

def test_gradient_of_one_head_does_not_reach_the_other():
    made = get_recipe("smoke_finetune", **{"model.num_classes": HEADS, "mixup": 0.})
    task, clips = Finetuning(made).train(), batch(made)
    logits = task.model(task.frontend(clips.inputs))["video"]
    logits["verb"].sum().backward()
    moved = task.model.head.weight.grad.abs().sum(1) > 0
    assert moved[:5].all() and not moved[5:].any()

def test_action_is_the_best_pair():
    g = generator()
    logits = {"verb": torch.randn(200, 5, generator=g), "noun": torch.randn(200, 7, generator=g), "hand": torch.randn(200, 2, generator=g)}
    targets = {head: torch.randint(0, x.shape[1], (200,), generator=g) for head, x in logits.items()}
    every = torch.einsum("ba,bc,bd->bacd", *(x.softmax(-1) for x in logits.values())).flatten(1)
    number = (targets["verb"] * 7 + targets["noun"]) * 2 + targets["hand"]
    for k in (1, 3, 5, 30, 100): assert joint_top_k_correct(logits, targets, k).equal(top_k_correct(every, number, k))

def test_head_scores_count_fully_labelled_clips():
    rows = lambda *labels: torch.tensor([[float(k == label) for k in range(3)] for label in labels])
    logits = {"verb": 5 * rows(0, 1, 2, 0), "noun": 5 * rows(0, 1, 0, 0)}
    found = head_scores(logits, {"verb": rows(0, 1, 2, -1), "noun": rows(0, 2, 0, 0)})
    assert (found["clips"], found["top1"], found["top1_verb"], found["top1_noun"], found["top5"]) == (3, pytest.approx(2 / 3), 1., pytest.approx(2 / 3), 1.)
    assert found["test_loss"] == pytest.approx((found["test_loss_verb"] + found["test_loss_noun"]) / 2)

def test_logits_of_several_heads_lie_side_by_side():
    made = get_recipe("smoke_finetune", **{"model.num_classes": HEADS})
    task, clips = Finetuning(made).eval(), batch(made, 3)
    torch.nn.init.normal_(task.model.head.weight, generator=generator())
    with torch.no_grad():
        inputs = task.frontend(clips.inputs)
        joined, split = logits_of(task.model, inputs, clips.present), task.model(inputs)
        deaf = logits_of(task.model, inputs, clips.present | {"audio": torch.tensor([True, True, False])})
    assert joined.equal(torch.cat([split["verb"], split["noun"]], 1)) and deaf.shape == (3, 12)
    torch.testing.assert_close(deaf[:2], joined[:2])

@pytest.fixture(scope="module")
def kitchen(corpus, tmp_path_factory) -> dict:
    "The smoke corpus as one of verbs (how it sounds) and nouns (what its surface is); the overrides that point a recipe to it."
    listed = open_manifest(get_recipe("smoke_finetune", **{"corpus.root": corpus}).corpus)
    listed = listed.with_columns(labels=[[f"noun/{surface}", f"verb/{sound}"] for (label,) in listed["labels"] for surface, sound in [label.split(" ", 1)]],
                                 split=["validation" if name == "test" else name for name in listed["split"]])
    names = sorted({label for labels in listed["labels"] for label in labels})
    table = tmp_path_factory.mktemp("kitchen")/"verbs_and_nouns.parquet"
    replace(listed, classes=tuple(names)).save(table)
    return {"corpus.root": corpus, "corpus.format": "manifest", "corpus.csv": str(table)}

TINY = {"model.size": "nano", "model.fusion_layer": 1, "model.num_classes": {"verb": 4, "noun": 4}, "clips.frames": 4, "clips.stride": 8, "clips.resize": 36, "clips.size": 32,
        "clips.samples": 16_000, "batch_size": 4, "steps": 6, "workers": 0, "freq_masks": 1, "optim.lr": .1}

@pytest.mark.parametrize("name", ["epic_kitchens_finetune", "epic_kitchens_finetune_audio", "epic_kitchens_finetune_video"])
def test_epic_recipe_trains_and_is_scored(kitchen, tmp_path, name):
    made = get_recipe(name, **TINY, **kitchen)
    record = fit(made, tmp_path/"run", device="cpu", progress=False)
    assert record["steps"] == 6
    result = evaluate(tmp_path/"run", device="cpu", progress=False)["result"]
    assert result["clips"] == 12 and result["windows"] == 4 and {"top1", "top5", "top1_verb", "top5_verb", "top1_noun", "top5_noun", "test_loss"} <= result.keys()
    assert result["top1"] <= min(result["top1_verb"], result["top1_noun"]) and result["top5_verb"] == 1.   # of four

def test_classes_that_do_not_fit_the_heads_are_told(kitchen):
    made = get_recipe("epic_kitchens_finetune", **kitchen)
    with pytest.raises(ValueError, match="there are {'noun': 4, 'verb': 4}, but model.num_classes is {'verb': 97, 'noun': 300}"): check_classes(made, open_manifest(made.corpus))

@pytest.mark.parametrize("labels", [["verb/rising"], ["verb/rising", "verb/falling", "noun/banded"], []])
def test_a_training_clip_without_exactly_one_label_per_head_is_told(kitchen, labels):
    made = get_recipe("epic_kitchens_finetune", **TINY, **kitchen)
    listed = open_manifest(made.corpus)
    spoilt = listed.with_columns(labels=[labels if row == 0 else x for row, x in enumerate(listed["labels"])])
    with pytest.raises(ValueError, match="1 training clips, such as .* have no label or not exactly one for each head"): train_data(made, spoilt, progress=False)

@pytest.mark.parametrize("name", ["audioset_finetune", "vggsound_finetune"])
def test_released_recipes_run_on_a_made_up_batch(name):
    made = get_recipe(name, **{key: value for key, value in TINY.items() if key != "model.num_classes"}, **{"model.num_classes": 9})
    task, clips = Finetuning(made).train(), batch(made, 4)
    if made.loss == "sigmoid": clips = clips._replace(labels=(torch.rand(4, 9, generator=generator()) < .3).float())
    drawn = task.draw(clips, 0)
    assert drawn["colours"] and "mels" in drawn["sound"] and "time" not in drawn["sound"] and ("shift" in drawn["sound"]) == (name == "audioset_finetune")
    assert total(task(task.frontend(clips.inputs), clips, drawn).losses, task.weights).isfinite()
