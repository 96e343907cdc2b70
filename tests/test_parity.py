"""Agreement with recorded numbers of the official implementation: one test for every record found.

`$AVMAE_PARITY_DIR` (default: a `shared/parity` folder beside the project) and the project's own `tests/parity` are both
searched; only a folder that is absent is passed over. A record is known by the start of its name; a name nobody knows
is a failure, and so is an array that nobody has looked at. Sizes, heads and patches come from the record itself.
`nbs/fidelity.ipynb` draws its table from the same code."""
import json, os, re
from pathlib import Path
from typing import NamedTuple
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
FOLDERS = [Path(os.environ.get("AVMAE_PARITY_DIR") or Path(__file__).parents[1] / "../shared/parity"), OURS]
ENCODER = dict(concat_and_encode="early_fusion", same_encoder="shared", separate_encoders="separate",
               separate_encoders_and_concat="mid_fusion")
DECODER = dict(same_decoder="shared", separate_decoders="separate", concat_and_decode="joint")
MODES = dict(joint={}, inpaint=dict(objective="inpainting"),
             inpaint_shuffle=dict(objective="inpainting", shuffle_inpainted="as_released"))
THEIRS = dict(video="rgb", audio="spectrogram")
# fusion without bottlenecks is not built, and the first layer of stochastic depth never drops anything
EXEMPT = re.compile(r"_without_bottlenecks|^droplayer/drop/0/")


class Record(dict):
    "Arrays by name, which remember whether anybody has looked at them: what nobody looked at was not compared."
    def __init__(self, arrays: dict, seen: set | None = None, prefix: str = ""):
        super().__init__(arrays)
        self.seen, self.prefix = set() if seen is None else seen, prefix

    def __getitem__(self, key: str) -> np.ndarray:
        self.seen.add(self.prefix + key)
        return super().__getitem__(key)

    def items(self): return [(key, self[key]) for key in self]

    def values(self): return [self[key] for key in self]

    def under(self, prefix: str) -> "Record":
        inside = {key.removeprefix(prefix): x for key, x in super().items() if key.startswith(prefix)}
        return Record(inside, self.seen, self.prefix + prefix)

class Comparison(NamedTuple):
    "The largest error of an array, relative to its scale, and what is allowed."
    what: str
    kind: str   # value, gradient or step
    error: float
    allowed: float

LEDGER: list[Comparison] = []   # of the record that is being checked


def records(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix not in (".json", ".md")] if folder.is_dir() else []

def load(path: Path) -> tuple[Record, dict]:
    with np.load(path, allow_pickle=False) as file: arrays = {key: file[key] for key in file.files}
    described = path.with_suffix(".json")
    return Record(arrays), {"file": path} | (json.loads(described.read_text()) if described.exists() else {})

def by_modality(record: Record, prefix: str) -> dict[str, Tensor]:
    found = record.under(prefix)
    return {m: torch.from_numpy(found[name]) for m, name in THEIRS.items() if name in found}

def inputs(record: Record, prefix: str = "in/") -> dict[str, Tensor]:
    layout = dict(video="b t h w c -> b t c h w", audio="b f m 1 -> b f m")
    return {m: rearrange(x, layout[m]) for m, x in by_modality(record, prefix).items()}

def within(error: float, scale: float, tolerance: float, what: str, kind: str) -> None:
    LEDGER.append(Comparison(what, kind, error / scale if scale else error, tolerance))
    assert error <= tolerance * scale, f"{what}: off by {error:.2e}, allowed {tolerance * scale:.2e}"

def agree(ours, theirs, what: str, tolerance: float = 1e-5) -> None:
    ours, theirs = torch.as_tensor(ours).detach(), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}"
    largest = lambda x: x.abs().max().item() if x.numel() else 0.
    within(largest(ours.double() - theirs.double()), max(1., largest(theirs)), tolerance, what, "value")

def agree_by_modality(ours: dict[str, Tensor], theirs: dict[str, Tensor], what: str) -> None:
    assert theirs and ours.keys() == theirs.keys(), what
    for m in theirs: agree(ours[m], theirs[m], f"{what} {m}")

def by_scenic_key(model: torch.nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = {name: scenic_keys(name, model) for name in values}
    return {key: piece for name, x in values.items() for key, piece in zip(keys[name], x.chunk(len(keys[name])))}

def agree_gradients(model: torch.nn.Module, recorded: Record) -> None:
    assert recorded, "no gradient is recorded"
    ours = by_scenic_key(model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    largest = max(np.abs(x).max() for x in recorded.values()).item()
    for key, theirs in recorded.items():
        theirs = to_torch(key, theirs)
        error = (ours.get(key, torch.zeros_like(theirs)) - theirs).abs().max().item()   # what we leave out has none
        scale = theirs.abs().max().item()
        # softmax does not feel a bias of all keys: its gradient is zero, and what is recorded is rounding
        if key.endswith("key/bias"): scale = max(scale, 1e-2 * largest)
        within(error, scale, 1e-4, f"gradient of {key}", "gradient")


# ---- pretraining

def pretrain(record: Record, about: dict) -> None:
    given, loss = about["config"]["model"], about["config"]["masked_feature_loss"]
    strategy = dict(encoder=ENCODER[given["encoder_strategy"]], decoder=DECODER[given["decoder_strategy"]])
    objective = dict(loss_per_value=loss["normalise_by_output_dimension"],
                     standardise_targets=loss["standardise_per_patch"],
                     loss_weight={m: loss["modality_weight"].get(name) for m, name in THEIRS.items()},
                     mask_ratio={m: loss["token_mask_probability_dict"].get(name) for m, name in THEIRS.items()})
    for mode in about["modes"]:
        model = avmae_from_scenic(record.under("params/"), **strategy, **objective, **MODES[mode])
        same_config(model.config, given)
        step(model, record, mode)
    encoded, masks = model.encode(inputs(record)), by_modality(record, "infer/token_mask/")
    agree_by_modality(encoded, by_modality(record, "infer/encoded/"), "encoded")
    agree_by_modality({m: torch.zeros(x.shape[:2]) for m, x in encoded.items()}, masks, "nothing masked")

def same_config(config, given: dict) -> None:
    # everything that was inferred from names and shapes
    sizes = lambda d: (d["hidden_size"], d["num_heads"], d["mlp_dim"], d["num_layers"])
    assert config.stack_size == sizes(given) and config.decoder_size == sizes(given["decoder_config"])
    if config.encoder == "mid_fusion": assert config.joint_layers == given["fusion_layers"]
    assert config.modality_tokens == given["use_modality_tokens"]
    same_patches(config, given["patches"])

def same_patches(config, sizes: dict) -> None:
    for m in config.modalities:
        h, w, *t = sizes.get("size") or sizes[THEIRS[m]]
        assert config.patch[m] == ((*t, h, w) if m == "video" else (h, w))

def step(model, record: Record, mode: str) -> None:
    ids = {m: record.under(f"mask/{THEIRS[m]}/") for m in model.config.modalities}
    masks = {m: Mask(*(torch.from_numpy(x[key]).long() for key in ("unmasked", "masked"))) for m, x in ids.items()}
    orders = {m: x.long() for m, x in by_modality(record, f"{mode}/ids/").items()}
    out = model(inputs(record), masks=masks, orders=orders)
    agree_by_modality(out.targets, by_modality(record, "target/"), f"{mode} target")
    agree_by_modality(out.predictions, by_modality(record, f"{mode}/pred/"), f"{mode} prediction")
    agree_by_modality(out.masks, by_modality(record, f"{mode}/token_mask/"), f"{mode} mask")
    agree_by_modality(out.losses, by_modality(record, f"{mode}/loss/"), f"{mode} loss")
    agree(out.loss, record[f"{mode}/loss/total"], f"{mode} total loss")
    out.loss.backward()
    agree_gradients(model, record.under(f"{mode}/grad/"))
    for m, mask in masks.items():   # our own draw hides as many
        assert random_mask(1, mask.n, model.config.mask_ratio[m]).drop.shape[1] == mask.drop.shape[1]


# ---- finetuning

def mbt(record: Record, about: dict) -> None:
    given = about["config"]["model"]
    model = classifier(record.under("params/"), given)
    assert model.config.num_classes == about["num_classes"]
    agree(model(inputs(record)), record["out/logits_eval"], "evaluation logits")
    if record.under("long/"): agree(model(inputs(record, "long/in/")), record["long/logits_eval"], "longer input")
    agree_by_modality(model.encode(inputs(record)), by_modality(record, "out/tokens/"), "tokens")
    logits, labels = model.train()(inputs(record)), by_modality(record, "labels/")
    agree_by_modality(logits, by_modality(record, "out/logits_train/"), "training logits")
    smooth = {m: smooth_labels(y, about["config"]["label_smoothing"]) for m, y in labels.items()}
    softmax, sigmoid = (torch.stack([loss(logits[m], smooth[m]).mean() for m in logits]).mean()
                        for loss in (softmax_loss, sigmoid_loss))
    agree(softmax, record["out/loss_softmax"], "softmax loss")
    agree(sigmoid, record["out/loss_sigmoid"], "sigmoid loss")
    softmax.backward()
    agree_gradients(model, record.under("grad_softmax/"))
    if record.under("droplayer/"): stochastic_depth(record, given)

def classifier(params: Record, given: dict, **overrides) -> AVClassifier:
    model = classifier_from_scenic(params, fusion_layer=given["fusion_layer"], **overrides)
    assert model.config.stack_size == (given["hidden_size"], given["num_heads"], given["mlp_dim"], given["num_layers"])
    same_patches(model.config, given["patches"])
    return model

def stochastic_depth(record: Record, given: dict) -> None:
    rates = record["droplayer/p_per_layer"]
    model = classifier(record.under("params/"), given, drop_path=float(rates[-1])).train()
    agree(torch.tensor(drop_path_rates(float(rates[-1]), len(rates))), rates, "drop rates")
    for m, blocks in model.blocks.items():
        for layer, block in enumerate(blocks):
            if layer == 0: continue
            for branch, module in (("attn", block.drop_path1), ("mlp", block.drop_path2)):
                keep = 1 - torch.from_numpy(record[f"droplayer/drop/{layer}/{THEIRS[m]}/{branch}"])
                module.keep = keep
    agree_by_modality(model(inputs(record)), by_modality(record, "droplayer/logits_train/"), "stochastic depth")

def mapping(record: Record, about: dict) -> None:
    source, target = about["source_config"]["model"], about["target_config"]["model"]
    mae = avmae_from_scenic(record.under("source/"), encoder=ENCODER[source["encoder_strategy"]],
                            decoder=DECODER[source["decoder_strategy"]])
    model = classifier(record.under("target_before/"), target)
    origin = model.init_from(mae)
    theirs = {name: scenic_keys(there, mae) if there else ["UNCHANGED"] * 3 for name, there in origin.items()}
    told = {key: there for name in origin for key, there in zip(scenic_keys(name, model), theirs[name])}
    unused = {} if model.config.fuses else {"bottleneck": "UNCHANGED"}
    assert told | unused == about["mapping"]
    after = by_scenic_key(model, model.state_dict())
    for key, theirs in record.under("target_after/").items():
        if key not in unused: agree(after[key], to_torch(key, theirs), key, 0.)
    agree(model(inputs(record)), record["out/logits_eval"], "logits after restoring")


# ---- tables and checkpoints

def positions(record: Record, about: dict) -> None:
    for key, theirs in record.items():
        kind, size = key.split("/")
        assert kind == "sinusoidal_1d", f"{key} is a kind of position that nobody knows"
        agree(sinusoidal_positions(*map(int, size.split("x"))), theirs, key)

def lr(record: Record, about: dict) -> None:
    for name, s in about["schedules"].items():
        shape = dict(peak=s["base"], warmup=s["warmup_steps"], total=s["total_steps"], final=s["alpha"])
        ours = [learning_rate(int(step), **shape) for step in record[f"{name}/steps"]]
        agree(torch.tensor(ours) / s["base"], record[f"{name}/lr"] / np.float32(s["base"]), name)

def scheduled(about: dict, step: int) -> float:
    s = about["lr"]
    return learning_rate(step, peak=s["base"], warmup=s["warmup"], total=s["total"], final=s["alpha"])

def same_steps(record: Record, step, config: OptimConfig, scales: dict | None = None) -> None:
    # what has been added since the start agrees to 1e-4 of itself, beside the rounding of the parameter it is added to
    before = record.under("params_before/")
    ours = {key: torch.from_numpy(x.copy()).requires_grad_() for key, x in before.items()}
    optimizer = build_optimizer({key.replace("kernel", "weight"): p for key, p in ours.items()}, config, scales)
    for s in range(len({key.split("/")[0] for key in record.under("grad/")})):
        gradient, after = record.under(f"grad/{s}/"), record.under(f"params_after/{s}/")
        for key, p in ours.items(): p.grad = torch.from_numpy(gradient[key].copy())
        step(optimizer, s)
        for key, p in ours.items():
            moved, recorded = p.detach().numpy() - before[key], after[key] - before[key]
            scale = np.abs(recorded).max() + 2.4e-3 * np.abs(before[key]).max()   # 1e-4 of it: two roundings
            within(np.abs(moved - recorded).max().item(), scale.item(), 1e-4, f"step {s}, {key}", "step")

def adam(record: Record, about: dict) -> None:
    def step(optimizer, s):
        rate = scheduled(about, s)
        agree(rate / about["lr"]["base"], record[f"lr/{s}"] / np.float32(about["lr"]["base"]), f"rate of step {s}")
        update(optimizer, rate)
    same_steps(record, step, OptimConfig(method="adam"))

def sgd(record: Record, about: dict) -> None:
    record, steps = record.under("sgd/"), list(map(int, about["lr_step_used"].split(",")))
    scales = {key.replace("kernel", "weight"): scale for key, scale in layer_scales(about).items()}
    def step(optimizer, s):
        norm = record[f"global_grad_norm/{s}"]   # of all parameters, most of which are not recorded
        clip_gradients(optimizer, 1., torch.from_numpy(norm))
        update(optimizer, scheduled(about, steps[s]))
    same_steps(record, step, OptimConfig(method="sgd", decay=0.), scales)

def layer_scales(about: dict) -> dict[str, float]:
    # every multiplier of a whole model, by the release's names
    theirs, layers = about["multipliers"], about["num_layers"]
    modalities = tuple(m for m, name in dict(video="embedding/", audio="embedding_spec").items() if any(key.startswith(name) for key in theirs))
    config = AVClassifierConfig(size="nano", layers=layers, num_classes=2, modalities=modalities, fusion_layer=0)
    with torch.device("meta"): model = AVClassifier(config)
    ours = rate_scales(model.state_dict(), model.layer_of, layers + 1, about["layerwise_decay"])
    scales = {key: scale for name, scale in ours.items() for key in scenic_keys(name, model)} | {"bottleneck": 1.}
    scales = {key: scales[key.replace("embedding_spectrogram/", "embedding_spec/")] for key in theirs}
    assert len(scales) >= sum(len(scenic_keys(name, model)) for name in ours), "multipliers of some parameters are not recorded"
    for key, recorded in theirs.items(): agree(scales[key] / recorded, 1., f"multiplier of {key}", 1e-6)
    return scales

def mixup(record: Record, about: dict) -> None:
    label, given, drawn = torch.from_numpy(record["in/label"]), by_modality(record, "in/"), record["weights/mixmod"].tolist()
    weights = {"mixup": {m: float(record["weights/mixup"]) for m in given}, "mixmod": dict(zip(given, drawn)),
               # the weight drawn first, whichever modality it is for
               "mixmod_single": {m: drawn[0] for m in by_modality(record, "mixmod_single/inputs/")}}
    for name, chosen in weights.items():
        mixed, labels = ({m: mix(x[m], w) for m, w in chosen.items()} for x in (given, dict.fromkeys(given, label)))
        agree_by_modality(mixed, by_modality(record, f"{name}/inputs/"), f"{name} inputs")
        agree_by_modality(labels, by_modality(record, f"{name}/label/"), f"{name} labels")
        for key in {f"{name}/label/all"} & set(record): agree(next(iter(labels.values())), record[key], key)

def losses_metrics(record: Record, about: dict) -> None:
    logits, counts = (torch.from_numpy(record[key]) for key in ("logits", "batch_mask"))
    labels = {key: torch.from_numpy(record[key]) for key in ("onehot", "multihot")}
    for key in record:
        if found := re.fullmatch(r"(softmax|sigmoid)_ce/(?:plain|smooth([\d.]+)_masked)", key):
            loss, y = {"softmax": (softmax_loss, labels["onehot"]), "sigmoid": (sigmoid_loss, labels["multihot"])}[found[1]]
            ours = loss(logits, smooth_labels(y, float(found[2] or 0)))
            agree((ours * counts).sum() / (counts.sum() + 1e-8) if found[2] else ours.mean(), record[key], key)
        elif found := re.fullmatch(r"label_smoothing_([\d.]+)/(\w+)", key):
            agree(smooth_labels(labels[found[2]], float(found[1])), record[key], key)
        elif found := re.fullmatch(r"top(\d+)_correct|prec_at_(\d+)", key):
            y = labels["onehot" if found[1] else "multihot"]
            agree(top_k_correct(logits, y, int(found[1] or found[2])) * counts, record[key].reshape(-1).astype("f4"), key)
    views = torch.from_numpy(record["multicrop/view_logits"])
    same_clip = torch.zeros(len(views), dtype=torch.int64)
    agree(average_by(same_clip, views, 1)[0], record["multicrop/averaged"], "mean over crops")
    rankings(record.under("map/"))

def rankings(record: Record) -> None:
    # the release counts a class without a positive as 0 or as NaN, according to scikit-learn's version, and AUC then has
    # no number; we average over the classes that occur, so that its means are compared with theirs put in for the others
    labels = torch.from_numpy(record["labels"]) > .5
    ours, occurs = ranking(torch.from_numpy(record["scores"]), labels), labels.any(0)
    theirs = torch.tensor([float(record[f"per_class_average_precision_{c}"]) for c in range(labels.shape[1])])
    assert not theirs[~occurs].nan_to_num().any()
    precision = torch.where(occurs, torch.tensor(ours.average_precision), theirs)
    agree(precision.nan_to_num(), theirs.nan_to_num(), "average precision")
    agree(ours.mAP, theirs[occurs].mean(), "mAP over the classes that occur")
    whole = (occurs & ~labels.all(0)).all()
    for key, value in (("mAP", precision.mean()), ("nanmean_average_precision", precision.nanmean()),
                       ("AUC", ours.auc if whole else np.nan), ("d-prime", ours.d_prime if whole else np.nan)):
        if np.isnan(record[key]): assert np.isnan(value), key
        else: agree(torch.tensor(float(value), dtype=torch.float32), record[key], key)

def checkpoint(path: Path) -> None:
    contents, _ = load(path.parent / "checkpoint_contents.npz")
    same_tree(read_checkpoint(path), contents.under("params/"))

def checkpoint_contents(record: Record, about: dict) -> None:
    path = about["file"]
    beside = [p for p in records(path.parent) if p.name.startswith("checkpoint_") and p != path]
    assert beside, "no checkpoint has these contents"
    same_tree(read_checkpoint(beside[0]), record.under("params/"))

def same_tree(ours: dict[str, np.ndarray], theirs: Record) -> None:
    assert ours.keys() == theirs.keys()
    for key, x in theirs.items():
        assert ours[key].dtype == x.dtype, key
        agree(ours[key].copy(), x, key, 0.)


KINDS = dict(pretrain__=pretrain, pretrain_variant__=pretrain, pretrain_single__=pretrain, mbt__=mbt, mapping__=mapping,
             tables__positions=positions, tables__lr=lr, tables__adam_explicit_decay=adam, tables__layerwise_sgd=sgd,
             tables__mixup=mixup, tables__losses_metrics=losses_metrics,
             checkpoint_contents=checkpoint_contents, checkpoint_=checkpoint)

def kind_of(path: Path):
    return next((check for start, check in KINDS.items() if path.name.startswith(start)), None)

def check(path: Path) -> list[Comparison]:
    "Everything that a record offers, compared; what was compared and how large the errors are."
    LEDGER.clear()
    compare = kind_of(path)
    assert compare, f"{path.name} is a kind of record that nobody knows"
    if compare is checkpoint: checkpoint(path)
    else:
        record, about = load(path)
        compare(record, about)
        unseen = sorted(key for key in set(record) - record.seen if not EXEMPT.search(key))
        assert not unseen, f"{path.name} offers arrays that nothing is compared with: {unseen[:5]}"
    assert LEDGER, f"nothing of {path.name} has been compared"
    return LEDGER.copy()

FOUND = [pytest.param(path, id=f"{'ours' if folder == OURS else 'given'}-{path.name}")
         for folder in FOLDERS for path in records(folder)]

@pytest.mark.parametrize("path", FOUND)
def test_record(path): check(path)

def test_own_records_are_there():
    assert {kind_of(path) for path in records(OURS)} >= {pretrain, mbt, mapping, positions, checkpoint}
    assert sum(path.stat().st_size for path in OURS.iterdir()) < 1e6

def test_folder_of_records():
    if not FOLDERS[0].is_dir(): pytest.skip(f"{FOLDERS[0]} is absent")
    assert records(FOLDERS[0]), f"{FOLDERS[0]} holds no record"

def test_what_nobody_knows_or_compares_fails(tmp_path):
    np.savez(tmp_path/"tables__unheard_of.npz", x=np.zeros(1))
    with pytest.raises(AssertionError, match="that nobody knows"): check(tmp_path/"tables__unheard_of.npz")
    np.savez(tmp_path/"tables__lr.npz", **{"new/lr": np.zeros(1)})
    (tmp_path/"tables__lr.json").write_text('{"schedules": {}}')
    with pytest.raises(AssertionError, match="nothing is compared with: .'new/lr'"): check(tmp_path/"tables__lr.npz")

@pytest.mark.parametrize("name, key", (
    ("mbt__audio", "out/tokens/spectrogram"), ("mbt__audio", "grad_softmax/Transformer/encoder_norm/scale"),
    ("pretrain_single__spectrogram", "joint/loss/total"), ("pretrain_single__spectrogram", "infer/encoded/spectrogram"),
    ("tables__losses_metrics", "map/d-prime"), ("tables__adam_explicit_decay", "params_after/3/mask_token_rgb")))
def test_a_changed_number_is_noticed(tmp_path, name, key):
    arrays, _ = load(OURS / f"{name}.npz")
    changed = arrays[key].copy()
    changed.reshape(-1)[-1] += 1e-3 * max(1, np.abs(changed).max())
    np.savez(tmp_path/f"{name}.npz", **{**arrays, key: changed})
    (tmp_path/f"{name}.json").write_text((OURS / f"{name}.json").read_text())
    with pytest.raises(AssertionError, match="off by"): check(tmp_path/f"{name}.npz")
