"The recipes of the paper: every number of METHOD.md's table of hyper-parameters, what follows from them, and that no field is without effect."
import functools, json
import pytest
from avmae.data.augment import ColourConfig
from avmae.data.mini import write_mini_audioset, write_mini_epic_kitchens
from avmae.train.feed import open_manifest
from avmae.train.config import override, recipe_from_dict
from avmae.train.recipes import RECIPES, get_recipe
from avmae.train.step import budget, count_tokens

JOINT = ("vggsound_pretrain", "vggsound_finetune", "audioset_pretrain", "audioset_finetune", "epic_kitchens_finetune")
EXAMPLES = {"vggsound_pretrain": 172_427, "vggsound_finetune": 172_427, "audioset_pretrain": 1_857_210, "audioset_finetune": 508_994}

def value(name: str, path: str):
    "The number of a recipe at a dotted path; mappings and attributes alike."
    step = lambda at, key: at[key] if isinstance(at, dict) else getattr(at, key)
    return functools.reduce(step, path.split("."), get_recipe(name))

BOTH_PRETRAIN = {
    "kind": "pretrain", "model.size": "large", "model.stack_size": (1024, 16, 4096, 24), "model.decoder": "shared", "model.decoder_size": (512, 8, 2048, 4),
    "model.modalities": ("video", "audio"), "model.patch.video": (2, 16, 16), "model.patch.audio": (16, 16), "model.channels.audio": 1,
    "model.objective": "reconstruction", "model.shuffle_inpainted": False, "model.modality_tokens": False, "model.standardise_targets": False, "model.loss_per_value": True,
    "model.mask_ratio.video": .9, "model.loss_weight.video": .5, "model.loss_weight.audio": .5,
    "clips.frames": 16, "clips.stride": 4, "clips.fps": 25, "clips.resize": 256, "clips.resize_eval": 224, "clips.size": 224, "clips.flip": .5, "clips.scale_jitter": None,
    "clips.windows": 1, "clips.rate": 16_000, "frontend.sample_rate": 16_000, "frontend.hop": 160, "frontend.mels": 128, "frontend.mean": 0., "frontend.std": 1.,
    "optim.method": "adam", "optim.betas": (.9, .95), "optim.eps": 1e-8, "optim.decay": .05, "optim.clip": None, "optim.layer_decay": 1., "optim.final": 0., "optim.warmup_epochs": 4,
    "batch_size": 512, "seed": 42}
BOTH_FINETUNE = {
    "kind": "finetune", "model.size": "large", "model.stack_size": (1024, 16, 4096, 24), "model.modalities": ("video", "audio"), "model.patch.video": (2, 16, 16),
    "model.patch.audio": (16, 16), "model.channels.audio": 1, "model.modality_tokens": False, "model.bottlenecks": 4, "model.drop_path": .3,
    "clips.frames": 32, "clips.stride": 2, "clips.fps": 25, "clips.resize": 256, "clips.resize_eval": None, "clips.size": 224, "clips.flip": .5, "clips.scale_jitter": (.9, 1.33),
    "clips.windows": 4, "clips.rate": 16_000, "frontend.sample_rate": 16_000, "frontend.hop": 160, "frontend.mels": 128,
    "optim.method": "sgd", "optim.momentum": .9, "optim.decay": 0., "optim.clip": 1., "optim.layer_decay": .75, "optim.final": 0., "optim.warmup_epochs": 2.5,
    "label_smoothing": .3, "mixup": .5, "mixup_per_modality": True, "epochs": 50, "seed": 0,
    "colour.jitter": .8, "colour.grey": .1, "colour.brightness": 32 / 255, "colour.saturation": (.6, 1.4), "colour.contrast": (.6, 1.4), "colour.hue": .2,
    "time_masks": 4, "time_mask_frames": 48, "time_mask_ratio": 0.}
TABLE = {
    "vggsound_pretrain": BOTH_PRETRAIN | {"model.encoder": "separate", "model.mask_ratio.audio": .5, "clips.samples": 128_000, "epochs": 400, "optim.lr": 1.5e-4 * 512 / 256},
    "audioset_pretrain": BOTH_PRETRAIN | {"model.encoder": "mid_fusion", "model.joint_layers": 2, "model.mask_ratio.audio": .7, "clips.samples": 160_000, "epochs": 120,
                                          "optim.lr": 3e-4 * 512 / 256},
    "vggsound_finetune": BOTH_FINETUNE | {"model.num_classes": 309, "loss": "softmax", "model.fused_from": 16, "clips.samples": 128_000, "frontend.mean": 0., "frontend.std": 1.,
                                          "init_audio_scale": 1., "batch_size": 64, "optim.lr": .8, "freq_masks": 1, "freq_mask_bins": 48, "circular_shift": False},
    "audioset_finetune": BOTH_FINETUNE | {"model.num_classes": 527, "loss": "sigmoid", "model.fused_from": 18, "clips.samples": 160_000, "frontend.mean": 1.102, "frontend.std": 2.762,
                                          "init_audio_scale": 1., "batch_size": 128, "optim.lr": 1.6, "freq_masks": 2, "freq_mask_bins": 36, "circular_shift": True},
    "epic_kitchens_finetune": BOTH_FINETUNE | {"model.num_classes": {"verb": 97, "noun": 300}, "loss": "softmax", "model.fused_from": 16, "clips.samples": 128_000,
                                               "frontend.mean": 0., "frontend.std": 1., "init_audio_scale": 1., "batch_size": 64, "optim.lr": .8, "freq_masks": 1,
                                               "freq_mask_bins": 48, "circular_shift": False}}

@pytest.mark.parametrize("name, path, stated", [(name, path, stated) for name, numbers in TABLE.items() for path, stated in numbers.items()], ids=lambda x: str(x)[:40])
def test_number_of_the_table(name, path, stated):
    assert value(name, path) == stated

@pytest.mark.parametrize("name, per_epoch, total, warmup", [("vggsound_pretrain", 336, 134_400, 4 * 336), ("vggsound_finetune", 2694, 134_700, 2.5 * 2694),
                                                            ("audioset_pretrain", 3627, 435_240, 4 * 3627), ("audioset_finetune", 3976, 198_800, 2.5 * 3976)])
def test_steps_follow_from_the_number_of_clips(name, per_epoch, total, warmup):
    made, clips = get_recipe(name), EXAMPLES[name]
    assert (clips // made.batch_size, made.total_steps(clips), made.warmup_steps(clips)) == (per_epoch, total, warmup)

@pytest.mark.parametrize("name, lr", [("vggsound_pretrain", 3e-4), ("audioset_pretrain", 6e-4), ("vggsound_finetune", .8), ("audioset_finetune", 1.6)])
def test_learning_rate_at_the_stated_batch(name, lr): assert value(name, "optim.lr") == lr

@pytest.mark.parametrize("name, tokens, seen", [
    ("vggsound_pretrain", {"video": 1568, "audio": 400}, {"video": 157, "audio": 200}), ("audioset_pretrain", {"video": 1568, "audio": 496}, {"video": 157, "audio": 149}),
    ("vggsound_finetune", {"video": 3136, "audio": 400}, None), ("audioset_finetune", {"video": 3136, "audio": 496}, None), ("epic_kitchens_finetune", {"video": 3136, "audio": 400}, None)])
def test_tokens(name, tokens, seen):
    found = budget(get_recipe(name), 2_000_000)
    assert found["tokens"] == tokens and found["seen by the encoder"] == (seen or tokens)

@pytest.mark.parametrize("name, bins", [("vggsound_pretrain", 800), ("vggsound_finetune", 800), ("audioset_pretrain", 1000), ("audioset_finetune", 1000)])
def test_length_of_the_spectrogram(name, bins): assert value(name, "clips.samples") // value(name, "frontend.hop") == bins


@pytest.mark.parametrize("name", EXAMPLES)
def test_repeated_crops_make_an_epoch_longer_and_leave_the_batch(name):
    once, four = get_recipe(name), get_recipe(name, **{"clips.repeats": 4})
    clips = EXAMPLES[name]
    assert (once.clips_per_step, four.clips_per_step) == (once.batch_size, once.batch_size // 4)
    assert four.total_steps(clips) == four.epochs * (4 * clips // four.batch_size) and four.warmup_steps(clips) == four.optim.warmup_epochs * (4 * clips // four.batch_size)
    assert override(four, {"clips.repeats": 1}) == once

def test_as_many_clips_as_a_batch_of_crops_needs():
    four = get_recipe("smoke_pretrain", **{"clips.repeats": 4})   # a batch of one clip
    assert four.total_steps(1) == 2 and four.total_steps(3) == 6
    with pytest.raises(ValueError, match="0 readable training clips do not fill one batch of 1"): four.total_steps(0)
    assert override(four, {"steps": 7}).total_steps(3) == 7

@pytest.mark.parametrize("repeats, said", [(3, "batch_size=4 is not a multiple of clips.repeats=3, the samples of each clip in a batch: change one of them"), (8, "batch_size=4 is not a multiple"),
                                           (0, "clips.repeats must be at least 1, not 0"), (1.5, "clips.repeats must be a whole number")])
def test_repeats_that_do_not_fit_are_told(repeats, said):
    with pytest.raises(ValueError, match=said): get_recipe("smoke_pretrain", **{"clips.repeats": repeats})


# ---- corpora

@pytest.mark.parametrize("name, root, format, csv, splits", [
    ("vggsound_pretrain", "corpora/vggsound", "vggsound", "vggsound.csv", ("train", "test")), ("vggsound_finetune", "corpora/vggsound", "vggsound", "vggsound.csv", ("train", "test")),
    ("audioset_pretrain", "corpora/audioset", "audioset", "2M", ("train", "test")), ("audioset_finetune", "corpora/audioset", "audioset", "500K", ("train", "test")),
    ("epic_kitchens_finetune", "corpora/epic_kitchens", "epic_kitchens", ".", ("train", "validation"))])
def test_official_lists_are_read(name, root, format, csv, splits):
    c = get_recipe(name).corpus
    assert (c.root, c.format, c.csv, (c.train_split, c.test_split)) == (root, format, csv, splits)

def test_the_lists_are_found_beside_the_media(tmp_path):
    "Recipes of AudioSet and Epic-Kitchens open the official files in the folder of the media, with no word about where they lie."
    write_mini_epic_kitchens(tmp_path/"epic", train=4, test=2, processes=1)
    write_mini_audioset(tmp_path/"audioset", train=4, test=2, processes=1)
    kitchen = open_manifest(get_recipe("epic_kitchens_finetune", **{"corpus.root": str(tmp_path/"epic")}).corpus)
    assert kitchen.splits == ("train", "validation") and {label.split("/")[0] for labels in kitchen["labels"] for label in labels} == {"verb", "noun"}
    listed = open_manifest(get_recipe("audioset_pretrain", **{"corpus.root": str(tmp_path/"audioset")}).corpus)
    assert listed.coverage("train")[0] == listed.coverage("train")[1] >= 4 and listed.splits == ("test", "train")
    with pytest.raises(ValueError, match="fewer than 508994"): open_manifest(get_recipe("audioset_finetune", **{"corpus.root": str(tmp_path/"audioset")}).corpus)


# ---- one modality

@pytest.mark.parametrize("modality", ["audio", "video"])
@pytest.mark.parametrize("name", JOINT)
def test_single_modality_is_the_joint_recipe_with_less(name, modality):
    alone, joint = get_recipe(f"{name}_{modality}"), get_recipe(name)
    assert alone.modalities == (modality,) and count_tokens(alone) == {modality: count_tokens(joint)[modality]}
    changes = {"name": alone.name, "model.modalities": [modality]} | ({"model.encoder": "shared"} if alone.kind == "pretrain" else {})
    assert override(joint, changes) == alone

@pytest.mark.parametrize("name, scores", [("vggsound_finetune", ["57.2", "50.3", "65.0"]), ("vggsound_finetune_audio", ["57.2"]), ("vggsound_finetune_video", ["50.3"]),
    ("audioset_finetune", ["46.6", "31.1", "51.8"]), ("audioset_finetune_audio", ["46.6", "46.4"]), ("audioset_finetune_video", ["31.1"]), ("audioset_pretrain_audio", ["46.4"]),
    ("epic_kitchens_finetune", ["71.4 / 56.4 / 46.0", "70.8 / 55.9 / 45.8", "52.7 / 27.2 / 19.7"]), ("epic_kitchens_finetune_audio", ["52.7 / 27.2 / 19.7"]),
    ("epic_kitchens_finetune_video", ["70.8 / 55.9 / 45.8"])])
def test_published_scores_are_told(name, scores):
    assert all(score in RECIPES[name].__doc__ for score in scores)

def test_what_is_ours_is_told():
    assert "Not released" in RECIPES["epic_kitchens_finetune"].__doc__
    for name in ("vggsound_finetune", "audioset_finetune"): assert "time_mask_ratio=1" in RECIPES[name].__doc__ and "frontend.mean" in RECIPES[name].__doc__
    assert "init_audio_scale=3" in RECIPES["vggsound_finetune"].__doc__


# ---- options and their limits

@pytest.mark.parametrize("key", ["scale", "clips", "jitter", "colour", "time_mask", "init_audio"])
def test_unknown_keys_are_errors(key):
    with pytest.raises(ValueError, match="did you mean"): get_recipe("vggsound_finetune", **{f"{key}_strength": 1})
    with pytest.raises(ValueError, match="did you mean"): get_recipe("vggsound_finetune", **{f"colour.{key}_strength": 1})

@pytest.mark.parametrize("path, given, said", [
    ("clips.scale_jitter", [1.33, .9], "clips.scale_jitter must be two positive numbers"), ("clips.scale_jitter", [.8, 1.33], "out of a short side of 204"), ("clips.scale_jitter", "big", "clips.scale_jitter must be"),
    ("colour.jitter", 1.5, "colour.jitter is a probability"), ("colour.grey", -.1, "colour.grey is a probability"), ("colour.hue", .6, "colour.hue must be in"),
    ("colour.contrast", [0, 1], "colour.contrast must be two positive numbers"), ("colour.brightness", -1, "colour.brightness must not be negative"),
    ("time_mask_ratio", 1.5, "time_mask_ratio must be in"), ("time_masks", -1, "time_masks must not be negative"), ("freq_mask_bins", -1, "freq_mask_bins must not be negative"),
    ("mixup", -.5, "mixup must not be negative"), ("init_audio_scale", 0, "init_audio_scale must be positive"), ("circular_shift", "perhaps", "circular_shift must be true or false")])
def test_wrong_values_are_named(path, given, said):
    with pytest.raises(ValueError, match=said): get_recipe("vggsound_finetune", **{path: given})

def test_text_becomes_what_the_fields_hold():
    made = get_recipe("smoke_finetune", **{"clips.resize": "40", "clips.scale_jitter": "0.9, 1.33", "colour.saturation": "[.5, 2]", "circular_shift": "true", "time_mask_ratio": "0.5"})
    assert (made.clips.scale_jitter, made.colour.saturation, made.circular_shift, made.time_mask_ratio) == ((.9, 1.33), (.5, 2.), True, .5)
    assert get_recipe("vggsound_finetune", **{"clips.scale_jitter": "null"}).clips.scale_jitter is None

@pytest.mark.parametrize("name", ["smoke_finetune", "mini_vggsound_finetune"])
def test_small_recipes_augment_nothing_new(name):
    made = get_recipe(name)
    assert made.clips.scale_jitter is None and made.colour == ColourConfig() and not made.colour.changes and not made.circular_shift and made.init_audio_scale == 1
    assert made.freq_masks == made.time_masks == 0

def test_a_recipe_that_was_stored_before_these_options_is_read():
    old = json.loads(json.dumps(get_recipe("mini_vggsound_finetune").to_dict()))
    for key in ("colour", "circular_shift", "time_mask_ratio", "init_audio_scale"): del old[key]
    for key in ("scale_jitter", "repeats"): del old["clips"][key]
    assert recipe_from_dict(old, "finetune") == get_recipe("mini_vggsound_finetune")

def test_heads_and_sigmoid_do_not_go_together():
    with pytest.raises(ValueError, match="is for one head"): get_recipe("epic_kitchens_finetune", loss="sigmoid")

def test_columns_of_heads_are_those_of_the_sorted_classes():
    heads = {"verb": 3, "noun": 2, "noun-part": 4}   # '-' sorts before '/'
    made = get_recipe("smoke_finetune", **{"model.num_classes": heads})
    names = sorted(f"{head}/{k}" for head, n in heads.items() for k in range(n))
    assert {head: [name.partition("/")[0] for name in names[columns]] for head, columns in made.head_columns.items()} == {head: [head] * n for head, n in heads.items()}
    assert list(made.head_columns) == list(heads) and get_recipe("smoke_finetune").head_columns == {"label": slice(0, 12)}
