"""Agreement with recorded numbers of the official implementation: one test for every record found.

`$AVMAE_PARITY_DIR` (default: a `shared/parity` folder beside the project) and the project's own `tests/parity` are both
searched; only a folder that is absent is passed over. A record is known by the start of its name; a name nobody knows
is a failure."""
import json, os
from pathlib import Path
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor
from avmae.model.classifier import AVClassifier
from avmae.model.masking import Mask, random_mask
from avmae.model.tokens import sinusoidal_positions
from avmae.model.transformer import drop_path_rates
from avmae import AVClassifierConfig
from avmae.scenic import avmae_from_scenic, classifier_from_scenic, read_checkpoint, scenic_keys, to_torch
from avmae.train.metrics import average_by, ranking, top_k_correct
from avmae.train.optim import OptimConfig, build_optimizer, clip_gradients, learning_rate, rate_scales, update
from avmae.train.step import mix, sigmoid_loss, smooth_labels, softmax_loss

OURS = Path(__file__).parent / "parity"
FOLDERS = [Path(os.environ.get("AVMAE_PARITY_DIR", Path(__file__).parents[1] / "../shared/parity")), OURS]
ENCODER = dict(concat_and_encode="early_fusion", same_encoder="shared", separate_encoders="separate",
               separate_encoders_and_concat="mid_fusion")
DECODER = dict(same_decoder="shared", separate_decoders="separate", concat_and_decode="joint")
MODES = dict(joint={}, inpaint=dict(objective="inpainting"),
             inpaint_shuffle=dict(objective="inpainting", shuffle_inpainted="as_released"))
THEIRS = dict(video="rgb", audio="spectrogram")
Record = dict[str, np.ndarray]


def records(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix not in (".json", ".md")] if folder.is_dir() else []

def load(path: Path) -> tuple[Record, dict]:
    with np.load(path, allow_pickle=False) as file: arrays = {key: file[key] for key in file.files}
    described = path.with_suffix(".json")
    return arrays, json.loads(described.read_text()) if described.exists() else {}

def under(record: Record, prefix: str) -> Record:
    return {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}

def by_modality(record: Record, prefix: str) -> dict[str, Tensor]:
    found = under(record, prefix)
    return {m: torch.from_numpy(found[name]) for m, name in THEIRS.items() if name in found}

def inputs(record: Record, prefix: str = "in/") -> dict[str, Tensor]:
    layout = dict(video="b t h w c -> b t c h w", audio="b f m 1 -> b f m")
    return {m: rearrange(x, layout[m]) for m, x in by_modality(record, prefix).items()}

def agree(ours, theirs, what: str, tolerance: float = 1e-5) -> None:
    ours, theirs = torch.as_tensor(ours).detach(), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}"
    error, bound = (ours - theirs).abs().max().item(), tolerance * max(1., theirs.abs().max().item())
    assert error <= bound, f"{what}: off by {error:.2e}, allowed {bound:.2e}"

def agree_by_modality(ours: dict[str, Tensor], theirs: dict[str, Tensor], what: str) -> None:
    assert theirs and ours.keys() == theirs.keys(), what
    for m in theirs: agree(ours[m], theirs[m], f"{what} {m}")

def by_scenic_key(model: torch.nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = {name: scenic_keys(name, model) for name in values}
    return {key: piece for name, x in values.items() for key, piece in zip(keys[name], x.chunk(len(keys[name])))}

def agree_gradients(model: torch.nn.Module, recorded: Record) -> None:
    ours = by_scenic_key(model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    largest = max(np.abs(x).max() for x in recorded.values())
    for key, theirs in recorded.items():
        theirs = to_torch(key, theirs)
        error = (ours.get(key, torch.zeros_like(theirs)) - theirs).abs().max().item()   # what we leave out has none
        bound = 1e-4 * theirs.abs().max().item()
        # softmax does not feel a bias of all keys: its gradient is zero, and what is recorded is rounding
        if key.endswith("key/bias"): bound = max(bound, 1e-6 * largest)
        assert error <= bound, f"gradient of {key} is off by {error:.2e}, allowed {bound:.2e}"


# ---- pretraining

def pretrain(path: Path) -> None:
    record, about = load(path)
    given, loss = about["config"]["model"], about["config"]["masked_feature_loss"]
    strategy = dict(encoder=ENCODER[given["encoder_strategy"]], decoder=DECODER[given["decoder_strategy"]])
    objective = dict(loss_per_value=loss["normalise_by_output_dimension"],
                     standardise_targets=loss["standardise_per_patch"],
                     loss_weight={m: loss["modality_weight"].get(name) for m, name in THEIRS.items()},
                     mask_ratio={m: loss["token_mask_probability_dict"].get(name) for m, name in THEIRS.items()})
    for mode in about["modes"]:
        model = avmae_from_scenic(under(record, "params/"), **strategy, **objective, **MODES[mode])
        same_config(model.config, given)
        step(model, record, mode)
    encoded = model.encode(inputs(record))
    agree_by_modality(encoded, by_modality(record, "infer/encoded/"), "encoded")
    assert not any(x.any() for x in by_modality(record, "infer/token_mask/").values())

def same_config(config, given: dict) -> None:
    # everything that was inferred from names and shapes
    assert config.stack_size == (given["hidden_size"], given["num_heads"], given["mlp_dim"], given["num_layers"])
    d = given["decoder_config"]
    assert config.decoder_size == (d["hidden_size"], d["num_heads"], d["mlp_dim"], d["num_layers"])
    if config.encoder == "mid_fusion": assert config.joint_layers == given["fusion_layers"]
    assert config.modality_tokens == given["use_modality_tokens"]
    same_patches(config, given)

def same_patches(config, given: dict) -> None:
    sizes = given["patches"]
    h, w, t = sizes["size"] if "size" in sizes else (None,) * 3
    if h: assert all(config.patch[m] == {"video": (t, h, w), "audio": (h, w)}[m] for m in config.modalities)

def step(model, record: Record, mode: str) -> None:
    ids = {m: under(record, f"mask/{THEIRS[m]}/") for m in model.config.modalities}
    masks = {m: Mask(*(torch.from_numpy(x[key]).long() for key in ("unmasked", "masked"))) for m, x in ids.items()}
    orders = {m: x.long() for m, x in by_modality(record, f"{mode}/ids/").items()}
    out = model(inputs(record), masks=masks, orders=orders)
    agree_by_modality(out.targets, by_modality(record, "target/"), f"{mode} target")
    agree_by_modality(out.predictions, by_modality(record, f"{mode}/pred/"), f"{mode} prediction")
    agree_by_modality(out.masks, by_modality(record, f"{mode}/token_mask/"), f"{mode} mask")
    agree_by_modality(out.losses, by_modality(record, f"{mode}/loss/"), f"{mode} loss")
    agree(out.loss, record[f"{mode}/loss/total"], f"{mode} total loss")
    out.loss.backward()
    agree_gradients(model, under(record, f"{mode}/grad/"))
    for m, mask in masks.items():   # our own draw hides as many
        assert random_mask(1, mask.n, model.config.mask_ratio[m]).drop.shape[1] == mask.drop.shape[1]


# ---- finetuning

def mbt(path: Path) -> None:
    record, about = load(path)
    given = about["config"]["model"]
    model = classifier(under(record, "params/"), given)
    assert model.config.num_classes == about["num_classes"] and model.config.stack_size.layers == given["num_layers"]
    same_patches(model.config, given)
    agree(model(inputs(record)), record["out/logits_eval"], "evaluation logits")
    if under(record, "long/"): agree(model(inputs(record, "long/in/")), record["long/logits_eval"], "longer input")
    agree_by_modality(model.encode(inputs(record)), by_modality(record, "out/tokens/"), "tokens")
    logits, labels = model.train()(inputs(record)), by_modality(record, "labels/")
    agree_by_modality(logits, by_modality(record, "out/logits_train/"), "training logits")
    smooth = {m: smooth_labels(y, about["config"]["label_smoothing"]) for m, y in labels.items()}
    softmax, sigmoid = (torch.stack([loss(logits[m], smooth[m]).mean() for m in logits]).mean()
                        for loss in (softmax_loss, sigmoid_loss))
    agree(softmax, record["out/loss_softmax"], "softmax loss")
    agree(sigmoid, record["out/loss_sigmoid"], "sigmoid loss")
    softmax.backward()
    agree_gradients(model, under(record, "grad_softmax/"))
    if under(record, "droplayer/"): stochastic_depth(record, given)
    known = {"params", "in", "out", "labels", "grad_softmax", "long", "droplayer"}
    assert {key.split("/")[0] for key in record} <= known

def classifier(params: Record, given: dict, **overrides) -> AVClassifier:
    return classifier_from_scenic(params, fusion_layer=given["fusion_layer"], **overrides)

def stochastic_depth(record: Record, given: dict) -> None:
    rates = record["droplayer/p_per_layer"]
    model = classifier(under(record, "params/"), given, drop_path=float(rates[-1])).train()
    agree(torch.tensor(drop_path_rates(float(rates[-1]), len(rates))), rates, "drop rates")
    for m, blocks in model.blocks.items():
        for layer, block in enumerate(blocks):
            if layer == 0: continue
            for branch, module in (("attn", block.drop_path1), ("mlp", block.drop_path2)):
                keep = 1 - torch.from_numpy(record[f"droplayer/drop/{layer}/{THEIRS[m]}/{branch}"])
                module.register_forward_hook(lambda _, args, out, keep=keep: args[0] * keep[:, None, None])
    agree_by_modality(model(inputs(record)), by_modality(record, "droplayer/logits_train/"), "stochastic depth")

def mapping(path: Path) -> None:
    record, about = load(path)
    source, target = about["source_config"]["model"], about["target_config"]["model"]
    mae = avmae_from_scenic(under(record, "source/"), encoder=ENCODER[source["encoder_strategy"]],
                            decoder=DECODER[source["decoder_strategy"]])
    model = classifier(under(record, "target_before/"), target)
    origin = model.init_from(mae)
    theirs = {name: scenic_keys(there, mae) if there else ["UNCHANGED"] * 3 for name, there in origin.items()}
    told = {key: there for name in origin for key, there in zip(scenic_keys(name, model), theirs[name])}
    unused = {} if model.config.fuses else {"bottleneck": "UNCHANGED"}
    assert told | unused == about["mapping"]
    after = by_scenic_key(model, model.state_dict())
    for key, theirs in under(record, "target_after/").items():
        if key in after: agree(after[key], to_torch(key, theirs), key, 0.)
    agree(model(inputs(record)), record["out/logits_eval"], "logits after restoring")


# ---- tables and checkpoints

def positions(path: Path) -> None:
    record, _ = load(path)
    for key, theirs in record.items():
        kind, size = key.split("/")
        assert kind == "sinusoidal_1d", f"{key} is a kind of position that nobody knows"
        agree(sinusoidal_positions(*map(int, size.split("x"))), theirs, key)

def lr(path: Path) -> None:
    record, about = load(path)
    for name, s in about["schedules"].items():
        shape = dict(peak=s["base"], warmup=s["warmup_steps"], total=s["total_steps"], final=s["alpha"])
        ours = [learning_rate(int(step), **shape) for step in record[f"{name}/steps"]]
        agree(torch.tensor(ours) / s["base"], record[f"{name}/lr"] / np.float32(s["base"]), name)
    assert {key.split("/")[0] for key in record} == set(about["schedules"])

def scheduled(about: dict, step: int) -> float:
    s = about["lr"]
    return learning_rate(step, peak=s["base"], warmup=s["warmup"], total=s["total"], final=s["alpha"])

def same_steps(record: Record, prefix: str, step, config: OptimConfig, scales: dict | None = None) -> None:
    # what has been added since the start agrees to 1e-4 of itself, beside the rounding of the parameter it is added to
    before = under(record, f"{prefix}params_before/")
    ours = {key: torch.from_numpy(x.copy()).requires_grad_() for key, x in before.items()}
    optimizer = build_optimizer({key.replace("kernel", "weight"): p for key, p in ours.items()}, config, scales)
    for s in range(len({key.split("/")[0] for key in under(record, f"{prefix}grad/")})):
        gradient, after = under(record, f"{prefix}grad/{s}/"), under(record, f"{prefix}params_after/{s}/")
        for key, p in ours.items(): p.grad = torch.from_numpy(gradient[key].copy())
        step(optimizer, s)
        for key, p in ours.items():
            moved, recorded = p.detach().numpy() - before[key], after[key] - before[key]
            bound = 1e-4 * np.abs(recorded).max() + 2.4e-7 * np.abs(before[key]).max()
            error = np.abs(moved - recorded).max()
            assert error <= bound, f"step {s}, {key}: off by {error:.2e}, allowed {bound:.2e}"

def adam(path: Path) -> None:
    record, about = load(path)
    def step(optimizer, s):
        rate = scheduled(about, s)
        agree(rate / about["lr"]["base"], record[f"lr/{s}"] / np.float32(about["lr"]["base"]), f"rate of step {s}")
        update(optimizer, rate)
    same_steps(record, "", step, OptimConfig(method="adam"))

def sgd(path: Path) -> None:
    record, about = load(path)
    scales = {key.replace("kernel", "weight"): scale for key, scale in layer_scales(about).items()}
    def step(optimizer, s):
        norm = record[f"sgd/global_grad_norm/{s}"]   # of all parameters, most of which are not recorded
        clip_gradients(optimizer, 1., torch.from_numpy(norm))
        update(optimizer, scheduled(about, s))
    same_steps(record, "sgd/", step, OptimConfig(method="sgd", decay=0.), scales)

def layer_scales(about: dict) -> dict[str, float]:
    # every multiplier of a whole model, by the release's names
    config = AVClassifierConfig(size="nano", layers=about["num_layers"], num_classes=2, fusion_layer=0)
    with torch.device("meta"): model = AVClassifier(config)
    ours = rate_scales(model.state_dict(), model.layer_of, about["num_layers"] + 1, about["layerwise_decay"])
    scales = {key: scale for name, scale in ours.items() for key in scenic_keys(name, model)}
    assert scales.keys() == about["multipliers"].keys()
    for key, theirs in about["multipliers"].items(): assert abs(scales[key] - theirs) <= 1e-6 * theirs, key
    return scales

def mixup(path: Path) -> None:
    record, _ = load(path)
    label, given = torch.from_numpy(record["in/label"]), by_modality(record, "in/")
    both = dict(zip(given, record["weights/mixmod"].tolist()))
    weights = {"mixup": {m: float(record["weights/mixup"]) for m in given}, "mixmod": both,
               # the weight drawn first, whichever modality it is for
               "mixmod_single": {m: both["video"] for m in by_modality(record, "mixmod_single/inputs/")}}
    for name, chosen in weights.items():
        mixed, labels = ({m: mix(x[m], w) for m, w in chosen.items()} for x in (given, dict.fromkeys(given, label)))
        agree_by_modality(mixed, by_modality(record, f"{name}/inputs/"), f"{name} inputs")
        agree_by_modality(labels, by_modality(record, f"{name}/label/"), f"{name} labels")
        for key in {f"{name}/label/all"} & set(record): agree(next(iter(labels.values())), record[key], key)
    assert {key.split("/")[0] for key in record} == {"in", "weights", *weights}

def losses_metrics(path: Path) -> None:
    record, _ = load(path)
    given = {key: torch.from_numpy(record[key]) for key in ("logits", "onehot", "multihot", "batch_mask")}
    logits, onehot, multihot, counts = given.values()
    for loss, name, labels in ((softmax_loss, "softmax_ce", onehot), (sigmoid_loss, "sigmoid_ce", multihot)):
        agree(loss(logits, labels).mean(), record[f"{name}/plain"], name)
        smooth = loss(logits, smooth_labels(labels, .3))
        agree((smooth * counts).sum() / (counts.sum() + 1e-8), record[f"{name}/smooth0.3_masked"], f"smoothed {name}")
    for name, labels in (("onehot", onehot), ("multihot", multihot)):
        agree(smooth_labels(labels, .3), record[f"label_smoothing_0.3/{name}"], f"smoothed {name}")
    for name, k, labels in (("top1_correct", 1, onehot), ("top5_correct", 5, onehot), ("prec_at_1", 1, multihot)):
        agree((top_k_correct(logits, labels, k) * counts), record[name].reshape(-1).astype("f4"), name)
    views = torch.from_numpy(record["multicrop/view_logits"])
    same_clip = torch.zeros(len(views), dtype=torch.int64)
    agree(average_by(same_clip, views, 1)[0], record["multicrop/averaged"], "mean over crops")
    rankings(record)

def rankings(record: Record) -> None:
    labels = torch.from_numpy(record["map/labels"])
    ours, occurs = ranking(torch.from_numpy(record["map/scores"]), labels), labels.any(0)
    theirs = torch.tensor([float(record[f"map/per_class_average_precision_{c}"]) for c in range(labels.shape[1])])
    agree(torch.tensor(ours.average_precision)[occurs], theirs[occurs], "average precision")
    # METHOD.md j21: we average over the classes that occur, the release counts the others as 0 or NaN
    agree(ours.mAP, theirs[occurs].mean(), "mAP over the classes that occur")
    if occurs.all():
        for value, key in ((ours.mAP, "mAP"), (ours.auc, "AUC"), (ours.d_prime, "d-prime")):
            agree(torch.tensor(value, dtype=torch.float32), record[f"map/{key}"], key)

def checkpoint(path: Path) -> None:
    contents, _ = load(path.parent / "checkpoint_contents.npz")
    same_tree(read_checkpoint(path), under(contents, "params/"))

def checkpoint_contents(path: Path) -> None:
    beside = [p for p in records(path.parent) if p.name.startswith("checkpoint_") and p != path]
    assert beside, "no checkpoint has these contents"
    same_tree(read_checkpoint(beside[0]), under(load(path)[0], "params/"))

def same_tree(ours: Record, theirs: Record) -> None:
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


KINDS = dict(pretrain__=pretrain, pretrain_variant__=pretrain, pretrain_single__=pretrain, mbt__=mbt, mapping__=mapping,
             tables__positions=positions, tables__lr=lr, tables__adam_explicit_decay=adam, tables__layerwise_sgd=sgd,
             tables__mixup=mixup, tables__losses_metrics=losses_metrics,
             checkpoint_contents=checkpoint_contents, checkpoint_=checkpoint)

def kind_of(path: Path):
    return next((check for start, check in KINDS.items() if path.name.startswith(start)), None)

FOUND = [pytest.param(path, id=f"{'ours' if folder == OURS else 'given'}-{path.name}")
         for folder in FOLDERS for path in records(folder)]

@pytest.mark.parametrize("path", FOUND)
def test_record(path):
    check = kind_of(path)
    assert check, f"{path.name} is a kind of record that nobody knows"
    check(path)

def test_own_records_are_there():
    assert {kind_of(path) for path in records(OURS)} >= {pretrain, mbt, mapping, positions, checkpoint}
    assert sum(path.stat().st_size for path in OURS.iterdir()) < 1e6

def test_folder_of_records():
    if not FOLDERS[0].is_dir(): pytest.skip(f"{FOLDERS[0]} is absent")
    assert records(FOLDERS[0]), f"{FOLDERS[0]} holds no record"
