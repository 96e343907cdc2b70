"""Laws that the model wing must obey, whatever the sizes."""
import json, math
import pytest
from packaging.version import Version
import torch
from torch import nn
from avmae import AVMAE, AVClassifier, AVClassifierConfig, AVMAEConfig
from avmae.model.avmae import Embedding, standardise
from avmae.model.decoders import DECODERS, inpainting_input
from avmae.model.encoders import ENCODERS
from avmae.model.frontend import Frontend, FrontendConfig, measure
from avmae.model.masking import Mask, random_mask, random_order, scatter, take
from avmae.model.tokens import patchify, position_table, sinusoidal_positions, token_grid, unpatchify
from avmae.model.transformer import Block, Transformer

PATCH = {"video": (2, 4, 8), "audio": (4, 6)}   # not square on purpose
NANO = dict(size="nano", patch=PATCH)


def seeded(seed: int = 0) -> torch.Generator: return torch.Generator().manual_seed(seed)

def autoencoder(**options) -> AVMAE: return AVMAE(AVMAEConfig(**{**NANO, **options}))

def classifier(**options) -> AVClassifier:
    return AVClassifier(AVClassifierConfig(**{"num_classes": 5, **NANO, **options}))

def clip(b: int = 2, frames: int = 4, bins: int = 18) -> dict:
    draw = seeded(7)
    video, audio = torch.rand(b, frames, 3, 8, 16, generator=draw), torch.randn(b, bins, 12, generator=draw)
    return {"video": video * 2 - 1, "audio": audio}

def awake(model: nn.Module) -> nn.Module:
    # heads and tokens start at zero, where nothing could go wrong
    draw = seeded(1)
    for p in model.parameters(): nn.init.normal_(p, std=.2, generator=draw)
    return model


# ---- front end

@pytest.mark.parametrize("samples", (160, 1_000, 16_000, 16_159))
def test_frames_are_hops(samples):
    front = Frontend()
    if samples <= 176:
        with pytest.raises(ValueError, match="more than 176 samples"): front.audio(torch.zeros(1, samples))
    else: assert front.audio(torch.zeros(1, samples)).shape == (1, samples // 160, 128)

def test_video_range_and_type():
    levels = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 1, 1, 1, 3)
    assert Frontend().video(levels).flatten().tolist() == pytest.approx([-1., 127 * 2 / 255 - 1, 1.], abs=1e-6)

def test_frontend_leaves_its_input_alone():
    video = torch.zeros(1, 2, 3, 4, 4)
    Frontend().video(video)
    assert not video.any()

def test_loudness_shifts_the_log_mel():
    tone = torch.sin(torch.arange(16_000) * .3)[None] * .1
    front = Frontend(FrontendConfig(log_offset=1e-20))
    assert torch.allclose(front.audio(tone * 2) - front.audio(tone), torch.tensor(2 * math.log(2)), atol=1e-2)

def test_measured_statistics_normalise():
    sounds = [torch.randn(2, 16_000, generator=seeded(s)) * .05 for s in range(2)]
    out = torch.cat([Frontend(measure(FrontendConfig(), sounds)).audio(x) for x in sounds])
    assert abs(out.mean()) < 1e-3 and abs(out.std() - 1) < 1e-3

@pytest.mark.parametrize("bad", (dict(hop=500), dict(window=600), dict(hop=159), dict(std=0.)))
def test_bad_frontend_is_refused(bad):
    with pytest.raises(ValueError): FrontendConfig(**bad)


# ---- tokens

@pytest.mark.parametrize("m", ("video", "audio"))
def test_patches_there_and_back(m):
    x = clip()[m][:, :16]
    patches, grid = patchify(x, PATCH[m]), token_grid(x.shape, PATCH[m])
    assert patches.shape == (2, math.prod(grid), math.prod(PATCH[m]) * (3 if m == "video" else 1))
    assert torch.equal(unpatchify(patches, grid, PATCH[m]), x)

def test_raster_order_and_features():
    t, c, h, w = torch.meshgrid(*map(torch.arange, (4, 3, 8, 16)), indexing="ij")
    patches = patchify((1000 * t + 100 * h + 3 * w + c)[None], PATCH["video"])[0]      # 2 x 2 x 2 tokens
    assert patches[:, 0].tolist() == [1000 * t + 100 * h + 3 * w for t in (0, 2) for h in (0, 4) for w in (0, 8)]
    assert (patches[0, :5] - patches[0, 0]).tolist() == [0, 1, 2, 3, 4]                # channels first, then columns

def test_remainders():
    assert torch.equal(patchify(clip()["audio"], (4, 6)), patchify(clip()["audio"][:, :16], (4, 6)))
    with pytest.raises(ValueError, match="whole number"): patchify(torch.zeros(1, 3, 3, 8, 16), PATCH["video"])
    with pytest.raises(ValueError, match="whole number"): patchify(torch.zeros(1, 3, 12), PATCH["audio"])
    with pytest.raises(ValueError, match="cannot be cut"): patchify(torch.zeros(1, 18, 12), PATCH["video"])

def test_positions_do_not_depend_on_the_length():
    assert torch.equal(sinusoidal_positions(50, 24), sinusoidal_positions(200, 24)[:50])
    assert sinusoidal_positions(1, 6).tolist() == [[0, 1, 0, 1, 0, 1]]

def test_a_table_made_in_inference_can_be_trained_with():
    with torch.inference_mode(): table = position_table(31, 6, torch.device("cpu"))
    assert not table.is_inference() and position_table(31, 6, torch.device("cpu")) is table

def test_gather_then_embed_is_embed_then_gather():
    embed = awake(Embedding(AVMAEConfig(modality_tokens=True, **NANO)))
    for m, x in clip().items():
        patches = patchify(x, PATCH[m])
        keep = random_mask(2, patches.shape[1], .5, seeded()).keep
        assert torch.allclose(embed(m, patches, keep), take(embed(m, patches), keep), atol=1e-5)


# ---- masks

@pytest.mark.parametrize("n, ratio, hidden", (
    (1568, .9, 1411), (400, .5, 200), (496, .7, 347), (10, .05, 0), (7, 0., 0), (1, .5, 0)))
def test_mask_counts(n, ratio, hidden):
    mask = random_mask(3, n, ratio, seeded())
    assert mask.drop.shape == (3, hidden) and mask.keep.shape == (3, n - hidden) and mask.n == n
    assert torch.equal(torch.cat(mask, 1).sort(1).values, torch.arange(n).expand(3, n))
    assert torch.equal(mask.binary().sum(1), torch.full((3,), float(hidden)))
    if not hidden: assert torch.equal(mask.keep[0], torch.arange(n))      # nothing is shuffled if nothing is hidden

def test_everything_cannot_be_hidden():
    for ratio in (1., 1.5, -.2):
        with pytest.raises(ValueError, match="mask ratio"): random_mask(1, 10, ratio)

def test_masks_follow_the_generator_and_differ_within_a_batch():
    a, b, c = (random_mask(4, 100, .9, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(a.keep, b.keep) and not torch.equal(a.keep, c.keep)
    assert len({tuple(row.tolist()) for row in a.keep.sort(1).values}) == 4
    assert not torch.equal(a.keep, a.keep.sort(1).values)                   # kept tokens are not sorted

def test_gather_and_scatter_are_inverse():
    x, mask = torch.randn(3, 12, 5, generator=seeded()), random_mask(3, 12, .6, seeded())
    kept, dropped = take(x, mask.keep), take(x, mask.drop)
    assert torch.equal(take(torch.cat([kept, dropped], 1), mask.restore), x)
    assert torch.equal(scatter(scatter(torch.zeros_like(x), mask.keep, kept), mask.drop, dropped), x)
    order = random_order(3, 12, seeded())
    assert torch.equal(take(take(x, order), order.argsort(1)), x)


# ---- transformer

def test_drop_path_is_not_rescaled():
    block, x = Block(32, 2, 64, drop_path=.5).train(), torch.randn(400, 3, 32, generator=seeded())
    torch.manual_seed(0)
    kept = (block.drop_path1(torch.ones(400, 3, 1)))[:, 0, 0]
    assert set(kept.tolist()) == {0., 1.} and .4 < kept.mean() < .6
    full = block.eval()(x)
    with torch.no_grad():
        attended = x + block.attn(block.norm1(x))
        options = torch.stack([x, attended, x + block.mlp(block.norm2(x)), full])
        nearest = (block.train()(x)[None] - options).abs().amax((2, 3)).min(0).values
    assert nearest.max() < 1e-5                                             # a branch is there whole or not at all

def test_tokens_have_no_order():
    stack, x = awake(Transformer(32, 2, 64, 2)), torch.randn(2, 9, 32, generator=seeded())
    order = torch.randperm(9, generator=seeded())
    assert torch.allclose(stack(x)[:, order], stack(x[:, order]), atol=1e-4)


# ---- the autoencoder

@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("objective", ("reconstruction", "inpainting"))
def test_every_combination_trains(encoder, decoder, objective):
    options = dict(encoder=encoder, decoder=decoder, objective=objective)
    model = awake(autoencoder(mask_ratio={"video": .6, "audio": .5}, **options))
    out = model(clip(), generator=seeded())
    out.loss.backward()
    for name, p in model.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), name
    assert out.loss.item() == pytest.approx(sum(.5 * x.item() for x in out.losses.values()))
    for m, target in out.targets.items():
        assert out.predictions[m].shape == target.shape and out.masks[m].shape == target.shape[:2]

def reach(model: AVMAE, prediction: str, source: str, masks: dict) -> torch.Tensor:
    # which tokens of `source` the prediction of a modality depends on: [n]
    x = {m: v.clone().requires_grad_() for m, v in clip(1).items()}
    out = model(x, masks=masks, generator=seeded()).predictions[prediction]
    grad, = torch.autograd.grad(out.sum(), x[source], allow_unused=True)
    return torch.zeros(masks[source].n) if grad is None else patchify(grad, PATCH[source])[0].abs().sum(-1)

def fixed_masks(model: AVMAE) -> dict: return model.sample_masks(clip(1), seeded(3))

@pytest.mark.parametrize("encoder", ("shared", "separate"))
def test_inpainting_never_sees_its_target(encoder):
    for shuffled in (False, "as_released", "aligned"):
        model = awake(autoencoder(encoder=encoder, objective="inpainting", shuffle_inpainted=shuffled))
        masks = fixed_masks(model)
        for m, other in (("video", "audio"), ("audio", "video")):
            assert not reach(model, m, m, masks).any() and reach(model, m, other, masks).any()

@pytest.mark.parametrize("encoder", ENCODERS)
def test_hidden_patches_are_hidden(encoder):
    model = awake(autoencoder(encoder=encoder, decoder="joint", mask_ratio={"video": .5, "audio": .5}))
    masks = fixed_masks(model)
    for m in masks:
        seen = reach(model, "audio", m, masks)
        assert not seen[masks[m].drop[0]].any() and seen[masks[m].keep[0]].all()

@pytest.mark.parametrize("encoder, decoder, meet", (
    ("separate", "shared", False), ("shared", "separate", False), ("shared", "joint", True),
    ("early_fusion", "separate", True), ("mid_fusion", "separate", True)))
def test_where_modalities_meet(encoder, decoder, meet):
    model = awake(autoencoder(encoder=encoder, decoder=decoder))
    assert reach(model, "audio", "video", fixed_masks(model)).any() == meet

def test_inpainting_asks_for_the_places_left():
    model = autoencoder(objective="inpainting", mask_ratio={"video": .5, "audio": .5})      # 8 and 8 tokens
    out = model(clip(), generator=seeded())
    for m in out.masks: assert torch.equal(out.masks[m], torch.tensor([[0.] * 4 + [1.] * 4] * 2))
    with pytest.raises(ValueError, match="cannot fit"): inpainting_input(torch.zeros(1, 5, 4), 4, torch.zeros(4))

def test_aligned_shuffle_knows_its_places():
    # without foreign tokens every place holds the same mask token: aligned predictions then do not depend on the order
    models = {shuffled: awake(autoencoder(objective="inpainting", shuffle_inpainted=shuffled))
              for shuffled in (False, "aligned", "as_released")}
    for model in models.values():
        for m, other in (("video", "audio"), ("audio", "video")):
            model.decoder.projection[m].weight.data.zero_()
            model.decoder.projection[m].bias.data.copy_(model.decoder.mask_token[other].data)
    masks = model.sample_masks(clip(), seeded())
    orders = model.sample_orders(masks, seeded(5))
    out = {s: x(clip(), masks=masks, orders=orders).predictions["video"] for s, x in models.items()}
    assert torch.allclose(out["aligned"], out[False], atol=1e-5)
    moved = out["as_released"].gather(1, orders["video"][..., None].expand_as(out[False]))
    assert torch.allclose(moved, out[False], atol=1e-4)
    assert not torch.allclose(out["as_released"], out[False], atol=1e-3)

@pytest.mark.parametrize("m", ("video", "audio"))
def test_one_modality(m):
    model = autoencoder(modalities=(m,))
    out = model(clip(), generator=seeded())                                   # the other one is passed over
    assert list(out.losses) == list(out.predictions) == [m]
    assert torch.equal(model(({m: clip()[m]}), generator=seeded()).loss, out.loss)

def test_the_generator_is_the_only_chance():
    model = awake(autoencoder(objective="inpainting", shuffle_inpainted="aligned"))
    a, b, c = (model(clip(), generator=seeded(s)).loss.item() for s in (0, 0, 1))
    assert a == b != c

def test_given_masks_are_used_and_checked():
    model, masks = autoencoder(), {m: random_mask(2, 8, .5, seeded()) for m in ("video", "audio")}
    out = model(clip(), masks=masks)
    for m, mask in masks.items(): assert torch.equal(out.masks[m], mask.binary()) and out.input_masks[m] is mask
    with pytest.raises(ValueError, match="7 tokens"): model(clip(), masks={**masks, "audio": random_mask(2, 7, .5)})
    with pytest.raises(ValueError, match="none for 'video'"): model(clip(), masks={"audio": masks["audio"]})
    with pytest.raises(ValueError, match="needs 'video'"): model({"audio": clip()["audio"]})

def test_nothing_hidden_counts_nothing():
    model = autoencoder(mask_ratio={"video": 0., "audio": 0.})
    assert model(clip()).loss.item() == 0.

def test_the_first_loss_is_the_mean_square_of_what_is_hidden():
    for standardised in (False, True):
        out = autoencoder(standardise_targets=standardised)(clip(), generator=seeded())
        for m, x in out.targets.items():
            if standardised: x = standardise(patchify(clip()[m], PATCH[m]))
            assert out.losses[m].item() == pytest.approx(x[out.masks[m] == 1].square().mean().item(), rel=1e-5)

def test_standardised_patches():
    x = standardise(torch.randn(2, 5, 40, generator=seeded()) * 7 + 3)
    assert x.mean(-1).abs().max() < 1e-5 and (x.var(-1, unbiased=False) - 1).abs().max() < 1e-4

@pytest.mark.parametrize("objective", ("reconstruction", "inpainting"))
def test_loss_is_float32_under_autocast(objective):
    model = awake(autoencoder(objective=objective))
    with torch.autocast("cpu", torch.bfloat16): out = model(clip(), generator=seeded())
    assert out.predictions["video"].dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(model(clip(), generator=seeded()).loss.item(), rel=.02)
    with torch.autocast("cpu", torch.bfloat16): logits = awake(classifier()).eval()(clip())
    assert logits.isfinite().all()

@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("options", (dict(), dict(objective="inpainting"), dict(objective="inpainting", shuffle_inpainted="aligned"),
                                     dict(objective="inpainting", shuffle_inpainted="as_released"), dict(standardise_targets=True)), ids=lambda o: "-".join(map(str, o.values())) or "plain")
def test_a_part_of_the_hidden_places(options, decoder):
    whole = awake(autoencoder(decoder=decoder, mask_ratio={"video": .6, "audio": .6}, **options))
    part = autoencoder(decoder=decoder, mask_ratio={"video": .6, "audio": .6}, decode_ratio=.3, **options)
    part.load_state_dict(whole.state_dict())
    masks, orders = whole.sample_masks(clip(), seeded()), {m: random_order(2, 8, seeded(3)) for m in ("video", "audio")}
    given = dict(masks=masks, orders=orders if "shuffle_inpainted" in options else None)
    full, less = whole(clip(), **given), part(clip(), **given)
    for m, ids in less.ids.items():
        hidden = full.masks[m].sum(1).int()
        assert all(len(set(row)) == len(row) for row in ids.tolist())                          # no place twice
        assert torch.equal(less.masks[m], full.masks[m].gather(1, ids))                        # a place counts where it counted
        assert less.masks[m].sum(1).tolist() == [math.ceil(.3 * n) for n in hidden] and ids.shape[1] == 8 - hidden[0] + math.ceil(.3 * hidden[0])
        assert torch.allclose(less.targets[m], take(full.targets[m], ids))
    assert torch.equal(part.eval()(clip(), **given).loss, full.loss) and part(clip(), **given).ids is None
    # a decoder in which no token sees another one predicts the same for a place, whoever else is there
    for model in (whole, part):
        for name, p in model.decoder.named_parameters():
            if "attn.proj" in name: nn.init.zeros_(p)
    full, less = whole(clip(), **given), part.train()(clip(), **given)
    for m, ids in less.ids.items(): assert torch.allclose(less.predictions[m], take(full.predictions[m], ids), atol=1e-5)

def test_a_part_has_the_gradient_of_the_whole_on_average():
    part, whole = awake(autoencoder(decode_ratio=.25)), autoencoder()
    whole.load_state_dict(part.state_dict())
    def gradient(model, seed):
        model.zero_grad()
        model(clip(), generator=seeded(seed)).loss.backward()
        return model.decoder.head["video"].bias.grad.clone()
    few, all_ = (torch.stack([gradient(model, seed) for seed in range(300)]) for model in (part, whole))
    assert ((few.mean(0) - all_.mean(0)).norm() / all_.mean(0).norm()) < .15

def test_an_absent_modality_counts_for_nothing_and_leaves_the_rest():
    model, masks = awake(autoencoder()), {m: random_mask(3, 8, .5, seeded()) for m in ("video", "audio")}
    present = {"video": torch.ones(3), "audio": torch.tensor([1., 0., 1.])}
    out, full = model(clip(3), masks=masks, present=present), model(clip(3), masks=masks)
    assert torch.equal(out.losses["video"], full.losses["video"]) and not out.masks["audio"][1].any()
    each = (full.predictions["audio"] - full.targets["audio"])[full.masks["audio"] == 1].reshape(3, -1).square().mean(1)
    assert out.losses["audio"].item() == pytest.approx(((each[0] + each[2]) / 2).item(), rel=1e-5)

@pytest.mark.parametrize("make", (autoencoder, lambda: classifier(drop_path=.5)), ids=("autoencoder", "classifier"))
def test_recomputed_blocks_have_the_same_gradients(make):
    model = awake(make()).train()
    def gradients(recompute):
        for module in model.modules():
            if isinstance(module, Block): module.recompute = recompute
        model.zero_grad()
        torch.manual_seed(0)
        out = model(clip()) if isinstance(model, AVClassifier) else model(clip(), generator=seeded())
        (sum(x.square().sum() for x in out.values()) if isinstance(out, dict) else out.loss).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.equal(gradients(False), gradients(True))

@pytest.mark.skipif(Version(torch.__version__) < Version("2.11"), reason="PyTorch 2.9 breaks the graph at a property of a named tuple (and goes on)")
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_model_is_one_graph(encoder):
    for options in (dict(), dict(decode_ratio=.5), dict(objective="inpainting", shuffle_inpainted="aligned")):
        model = awake(autoencoder(encoder=encoder, **options))
        masks, orders = {m: random_mask(2, 8, .5, seeded()) for m in ("video", "audio")}, {m: random_order(2, 8, seeded()) for m in ("video", "audio")}
        torch.compiler.reset()   # or earlier ones count against a limit
        compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
        assert torch.equal(compiled(clip(), masks=masks, orders=orders).loss, model(clip(), masks=masks, orders=orders).loss)
    model = awake(classifier()).eval()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(clip()), model(clip()))

def test_stochastic_depth_can_be_set_from_outside():
    block, x = Block(32, 2, 64, drop_path=.5).train(), torch.randn(4, 3, 32, generator=seeded())
    block.drop_path1.keep, block.drop_path2.keep = torch.tensor([True, False, True, False]), torch.tensor([True, False, False, True])
    out = block(x)
    assert torch.equal(out[1], x[1]) and torch.allclose(out[0], block.eval()(x)[0], atol=1e-6)
    assert torch.allclose(out[2], (x + block.attn(block.norm1(x)))[2], atol=1e-6) and torch.allclose(out[3], (x + block.mlp(block.norm2(x)))[3], atol=1e-6)

def test_longer_inputs():
    model = autoencoder()
    assert {m: x.shape[1] for m, x in model.encode(clip(frames=8, bins=40)).items()} == {"video": 16, "audio": 20}
    assert model(clip(frames=8, bins=40), generator=seeded()).loss.isfinite()

def test_state_dict_holds_parameters_only():
    for model in (autoencoder(modality_tokens=True), classifier(num_classes=3)):
        model(clip())
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


# ---- configs

CONFIGS = (
    FrontendConfig(mean=1.102, std=2.762),
    AVMAEConfig(), AVMAEConfig(modalities=("audio",), encoder="shared", size="tiny"),
    AVMAEConfig(objective="inpainting", shuffle_inpainted="aligned", width=64, heads=2, patch=PATCH),
    AVClassifierConfig(num_classes={"verb": 97, "noun": 300}, fusion_layer=0),
    AVClassifierConfig(num_classes=5, drop_path=.3))

@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_configs_survive_json(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config

def test_unknown_keys_name_the_close_ones():
    for config, values, complaint in (
            (AVMAEConfig, {"fusion_layer": 2}, "no key 'fusion_layer'.*'fusion_layers'"),
            (AVClassifierConfig, {"num_clases": 2}, "'num_classes'"), (AVMAEConfig, {"size": "larg"}, "'large'")):
        with pytest.raises(ValueError, match=complaint): config.from_dict(values)

@pytest.mark.parametrize("bad", (
    dict(encoder="late"), dict(decoder="none"), dict(objective="paint"), dict(heads=5), dict(fusion_layers=13),
    dict(modalities=("audio", "video")), dict(modalities=()), dict(modalities=("text",)),
    dict(objective="inpainting", modalities=("audio",)), dict(shuffle_inpainted="aligned"),
    dict(mask_ratio={"video": .9}), dict(mask_ratio={"video": 1., "audio": .5}),
    dict(patch={"video": (16, 16), "audio": (16, 16)}), dict(channels={"video": 3, "audio": 3})))
def test_bad_configs_are_refused(bad):
    with pytest.raises(ValueError): AVMAEConfig(**bad)

def test_published_sizes():
    large = AVMAEConfig(size="large", encoder="separate")
    assert large.stack_size == (1024, 16, 4096, 24) and large.decoder_size == (512, 8, 2048, 4)
    assert (large.values("video"), large.values("audio")) == (1536, 256)
    with torch.device("meta"): model = AVMAE(AVMAEConfig(size="large", encoder="shared"))
    count = sum(p.numel() for p in model.parameters())
    assert 310e6 < count < 325e6                                              # a ViT-L and a small decoder


# ---- the classifier

def test_training_and_evaluation_logits():
    model = awake(classifier())
    parts = model.train()(clip())
    assert list(parts) == ["video", "audio"] and all(x.shape == (2, 5) for x in parts.values())
    assert torch.allclose(model.eval()(clip()), (parts["video"] + parts["audio"]) / 2, atol=1e-5)

def test_several_heads():
    model = awake(classifier(num_classes={"verb": 7, "noun": 3}))
    assert {h: x.shape for h, x in model.eval()(clip()).items()} == {"verb": (2, 7), "noun": (2, 3)}
    assert {h: x.shape for h, x in model.train()(clip())["audio"].items()} == {"verb": (2, 7), "noun": (2, 3)}

@pytest.mark.parametrize("fusion_layer, heard", ((0, True), (3, True), (5, False), (6, False)))
def test_fusion_layer(fusion_layer, heard):
    # the last fused layer only fills bottlenecks, so that fusing there alone is still late fusion
    model = awake(classifier(layers=6, fusion_layer=fusion_layer))
    louder = {**clip(), "audio": clip()["audio"] * 2}
    assert (not torch.allclose(model.train()(clip())["video"], model(louder)["video"])) == heard
    assert hasattr(model, "bottleneck") == (fusion_layer < 6)

def test_one_modality_is_a_plain_transformer():
    model = awake(classifier(modalities=("audio",)))
    tokens = model.embed("audio", patchify(clip()["audio"], PATCH["audio"]))
    for block in model.blocks["audio"]: tokens = block(tokens)
    assert torch.allclose(model.eval()(clip()), model.head(model.norm(tokens).mean(1)), atol=1e-5)
    assert set(model.train()(clip())) == {"audio"}

def test_every_parameter_of_the_classifier_learns():
    for modalities in (("video", "audio"), ("video",), ("audio",)):
        model = awake(classifier(layers=4, modalities=modalities))
        sum(x.square().sum() for x in model(clip()).values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

def test_layer_of_covers_every_parameter():
    model = classifier(layers=4, modality_tokens=True)
    depths = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(6))
    assert {name.split(".")[0] for name, depth in depths.items() if depth == 5} == {"bottleneck", "norm", "head"}
    assert all(depth == 0 for name, depth in depths.items() if name.startswith("embed."))

@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("modalities", (("video", "audio"), ("video",), ("audio",)))
def test_restore(encoder, modalities):
    mae = awake(autoencoder(encoder=encoder, modality_tokens=True, layers=4))
    model = classifier(modalities=modalities, modality_tokens=True, layers=4)
    fresh = {name: p.clone() for name, p in model.state_dict().items()}
    origin, source = model.init_from(mae), mae.state_dict()
    assert set(origin) == set(fresh)
    for name, p in model.state_dict().items():
        assert torch.equal(p, fresh[name] if origin[name] is None else source[origin[name]]), name
    left = {name.split(".")[0] for name, there in origin.items() if there is None}
    assert ("norm" in left) == (encoder == "separate")
    assert left - {"norm"} == ({"head", "bottleneck"} if len(modalities) > 1 else {"head"})
    # without fusion and with the norm restored, the classifier's tokens are the encoder's
    if encoder == "shared": assert_same_tokens(mae, modalities)

def assert_same_tokens(mae, modalities):
    model = classifier(modalities=modalities, modality_tokens=True, layers=4, fusion_layer=4)
    model.init_from(mae)
    for m, x in model.encode(clip()).items(): assert torch.allclose(x, mae.encode(clip())[m], atol=1e-4)

def test_restore_refuses_what_does_not_fit():
    mae = autoencoder(modalities=("audio",))
    with pytest.raises(ValueError, match="never seen 'video'"): classifier().init_from(mae)
    wide = classifier(modalities=("audio",), width=64)
    before = {name: p.clone() for name, p in wide.state_dict().items()}
    with pytest.raises(ValueError, match="has shape"): wide.init_from(mae)
    assert all(torch.equal(p, before[name]) for name, p in wide.state_dict().items())   # nothing has been changed

def test_restore_into_a_deeper_model_copies_what_there_is():
    mae = awake(autoencoder(modalities=("audio",), encoder="separate"))
    model = classifier(modalities=("audio",), layers=3)
    origin = model.init_from(mae)
    assert origin["blocks.audio.1.norm1.weight"] and origin["blocks.audio.2.norm1.weight"] is None
