"The train wing: laws of the schedule and the optimisers, recipes, checkpoints that survive anything, runs that resume to the last bit."
import json, math, multiprocessing, os, re, resource, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avmae.data import cache
from avmae.data.loader import Batch, TooManyFailures, TrainBatches, WorkerDied, make_loader
from avmae.model.avmae import AVMAE, AVMAEConfig
from avmae.model.classifier import AVClassifier, AVClassifierConfig
from avmae.train import engine, step as steps
from avmae.train.budget import made_up
from avmae.train.checkpoint import CheckpointError, checkpoints, load_checkpoint, load_weights, save_checkpoint, save_weights
from avmae.train.engine import Interrupted, NonFinite, fit
from avmae.train.evaluate import evaluate, scores
from avmae.train.feed import open_corpus, open_manifest, train_data, write_smoke_corpus
from avmae.train.metrics import average_by, d_prime, ranking, top_k_correct
from avmae.train.state import begin
from avmae.train.weights import load_model
from avmae.train.optim import (OptimConfig, build_optimizer, clip_gradients, gradient_norm, is_kernel, learning_rate,
                               rate_scales, update)
from avmae.train.config import override, recipe_from_dict
from avmae.train.recipes import RECIPES, get_recipe
from avmae.train.record import config_hash, read_metrics
from avmae.train.step import Finetuning, Pretraining, blank, budget, mixup_weights, part_of, seed_of, split


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)   # sums in the order of the subprocesses below
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return str(root)

def recipe(corpus: str, kind: str = "pretrain", **overrides):
    return get_recipe(f"smoke_{kind}", **{"corpus.root": corpus, **{key.replace("__", "."): value for key, value in overrides.items()}})

def run(made, folder: Path) -> dict:
    return fit(made, folder, device="cpu", progress=False)


# ---- schedule

def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine():
    rate = lambda s, **more: learning_rate(s, **{"peak": 2., "warmup": 10, "total": 110, **more})
    assert [rate(s) for s in (0, 5, 10)] == [0., 1., 2.]
    assert rate(60) == pytest.approx(1.) and rate(35) == pytest.approx(1 + math.cos(math.pi / 4))
    falling = [rate(s, final=.1) for s in range(10, 110)]
    assert all(a > b > .2 for a, b in zip(falling, falling[1:]))
    assert rate(0, warmup=0) == 2.

def test_learning_rate_with_a_fractional_warm_up_counts_the_cosine_from_its_end():
    # METHOD.md g: the ramp and the cosine's start use W, its length int(W)
    assert learning_rate(7, peak=1., warmup=7.5, total=107) == pytest.approx(7 / 7.5)
    assert learning_rate(8, peak=1., warmup=7.5, total=107) == pytest.approx(.5 * (1 + math.cos(math.pi * .5 / 100)))

def test_learning_rate_restarts_after_the_last_step_as_in_the_release():
    assert learning_rate(110, peak=1., warmup=10, total=110) == 1.

def test_a_run_may_be_shorter_than_its_warm_up():
    assert [learning_rate(s, peak=1., warmup=100, total=3) for s in range(3)] == [0., .01, .02]


# ---- optimisers

def naive(config: OptimConfig, w: np.ndarray, gradients: list, rates: list, scale: float, decays: bool, clip_norms: list) -> np.ndarray:
    "One parameter, as METHOD.md g writes it down, in float64."
    m = v = buffer = np.zeros_like(w)
    for t, (g, rate, norm) in enumerate(zip(gradients, rates, clip_norms), 1):
        g, rate = g / max(1., norm / config.clip) if config.clip else g, rate * scale
        if config.method == "adam":
            m, v = config.betas[0] * m + (1 - config.betas[0]) * g, config.betas[1] * v + (1 - config.betas[1]) * g * g
            w = w - rate * m / (1 - config.betas[0]**t) / (np.sqrt(v / (1 - config.betas[1]**t)) + config.eps)
        else:
            buffer = config.momentum * buffer + g
            w = w - rate * buffer
        if decays: w = w * (1 - rate * config.decay)
    return w

@pytest.mark.parametrize("config", [OptimConfig(), OptimConfig(betas=(.8, .99), decay=.3, clip=2.), OptimConfig(method="sgd", decay=0., clip=1.),
                                    OptimConfig(method="sgd", momentum=.5, decay=.1)], ids=["adam", "adam-clipped", "sgd-clipped", "sgd-decayed"])
def test_optimiser_is_the_written_out_one(config):
    rng, shapes = np.random.default_rng(0), {"a.weight": (3, 4), "a.bias": (4,), "norm.weight": (5,), "mask_token": (1, 1, 6)}
    start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) * 10**-(t % 3) for name, shape in shapes.items()} for t in range(7)]
    rates, scales = [0., .1, .2, .2, .15, .1, .02], dict(zip(shapes, (1., .75, .75, .5)))
    norms = [math.sqrt(sum((g**2).sum() for g in each.values())) for each in gradients]
    named = {name: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for name, w in start.items()}
    optimizer = build_optimizer(named, config, scales)
    for each, rate, norm in zip(gradients, rates, norms):
        for name, g in each.items(): named[name].grad = torch.tensor(g, dtype=torch.float32)
        assert gradient_norm(optimizer).item() == pytest.approx(norm, rel=1e-5)
        if config.clip: clip_gradients(optimizer, config.clip, gradient_norm(optimizer))
        update(optimizer, rate)
    for name, w in start.items():
        expected = naive(config, w, [g[name] for g in gradients], rates, scales[name], name == "a.weight", norms)
        np.testing.assert_allclose(named[name].detach().numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=name)

@pytest.mark.parametrize("model", [AVMAE(AVMAEConfig(size="nano", modality_tokens=True)), AVClassifier(AVClassifierConfig(size="nano", num_classes=3))],
                         ids=["pretraining", "finetuning"])
def test_decay_acts_on_the_matrices_of_linear_layers_and_on_nothing_else(model):
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name, p in model.named_parameters() if is_kernel(name, p)} == linear and linear

def test_layer_decay_table():
    # METHOD.md g: embeddings 0, block i at i+1, all else at L+1
    config = AVClassifierConfig(size="mini", num_classes=8, fusion_layer=2, modality_tokens=True)
    model, top = AVClassifier(config), config.stack_size.layers + 1
    for name, scale in rate_scales(dict(model.named_parameters()), model.layer_of, top, .75).items():
        block = re.search(r"blocks\.(?:video|audio)\.(\d+)\.", name)
        depth = 0 if name.startswith("embed") else int(block[1]) + 1 if block else top
        assert scale == .75 ** (top - depth), name
    assert rate_scales(["bottleneck", "norm.weight", "head.bias"], model.layer_of, top, .75) == dict.fromkeys(["bottleneck", "norm.weight", "head.bias"], 1.)


# ---- recipes

@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_json_and_says_what_it_needs(name):
    made = get_recipe(name)
    assert recipe_from_dict(json.loads(json.dumps(made.to_dict())), made.kind) == made and made.name == name
    said = RECIPES[name].__doc__
    assert "Data: " in said and "Cost: " in said and re.search(r"Score: |Published ", said)
    assert budget(made, 200_000)["parameters"] > 0

def test_unknown_names_are_answered_with_the_close_ones(corpus):
    for make, told in [(lambda: get_recipe("mini_vgsound_pretrain"), "'mini_vggsound_pretrain'"), (lambda: recipe(corpus, optim__lrr=1), "'optim.lr'"),
                       (lambda: recipe(corpus, mask_ratio=1), "'model.mask_ratio'"), (lambda: recipe(corpus, model__mask_ratio__vidio=.5), "'model.mask_ratio.video'")]:
        with pytest.raises(ValueError, match="did you mean .*" + re.escape(told)): make()

@pytest.mark.parametrize("path, value, said", [("optim.lr", "fast", "optim.lr must be a number, not 'fast'"), ("batch_size", 2.5, "batch_size must be a whole number"),
                         ("cache", "maybe", "cache must be true or false"), ("optim.betas", [.9], "optim.betas must be a list"), ("optim.method", "lion", "adam, sgd"),
                         ("accumulate", 3, "cannot make a batch of 4"), ("clips.rate", 8000, "frontend.sample_rate")])
def test_wrong_values_are_named(path, value, said):
    with pytest.raises(ValueError, match=re.escape(said)): get_recipe("smoke_pretrain", **{path: value})

def test_text_becomes_what_the_field_holds():
    typed = get_recipe("smoke_finetune", **{"optim.lr": "1e-2", "model.modalities": "[audio]", "optim.clip": "null", "cache": "false", "steps": "7", "init_from": ""})
    assert (typed.optim.lr, typed.modalities, typed.optim.clip, typed.cache, typed.steps, typed.init_from) == (.01, ("audio",), None, False, 7, None)
    assert get_recipe("smoke_finetune", **{"model.modalities": ["audio"]}).modalities == ("audio",)

def test_hash_is_of_the_numbers_and_not_of_the_place():
    made = get_recipe("smoke_pretrain").to_dict()
    same, other = (get_recipe("smoke_pretrain", **more).to_dict() for more in ({"corpus.root": "/elsewhere", "workers": 3}, {"optim.lr": .5}))
    assert config_hash(made) == config_hash(same) == config_hash(json.loads(json.dumps(made))) != config_hash(other)

def test_released_numbers():
    pre, fine = get_recipe("vggsound_pretrain"), get_recipe("vggsound_finetune")
    assert (pre.total_steps(172_427), pre.warmup_steps(172_427), fine.total_steps(172_427)) == (134_400, 1344, 134_700)
    assert (pre.optim.lr, pre.optim.decay, fine.optim.lr, fine.optim.layer_decay, fine.model.fusion_layer) == (3e-4, .05, .8, .75, 16)
    assert budget(pre, 172_427)["tokens"] == {"video": 1568, "audio": 400}


# ---- chance

def test_masks_follow_from_seed_and_step_and_not_from_what_ran_before(corpus):
    made = recipe(corpus)
    batch = Batch(None, None, torch.zeros(6), list("abcdef"), {}, [])
    keep = lambda task, step, batch=batch: torch.cat([x.keep for x in task.draw(batch, step)["masks"].values()], 1)
    task, again = Pretraining(made), Pretraining(made)
    torch.rand(100)
    assert keep(task, 3).equal(keep(again, 3)) and not keep(task, 3).equal(keep(task, 4))
    assert not keep(task, 3).equal(keep(Pretraining(override(made, {"seed": 1})), 3))
    assert keep(task, 3, batch._replace(ids=list("fdb"))).equal(keep(task, 3)[[5, 3, 1]])   # whoever stands beside a clip
    twice = keep(task, 3, batch._replace(ids=list("aba")))
    assert twice[:2].equal(keep(task, 3)[:2]) and not twice[0].equal(twice[2])              # unless it is another crop of the same

def test_split_loses_nothing():
    for n in range(1, 20):
        for parts in range(1, 8):
            made = split(n, parts)
            assert sorted(sum(made, [])) == list(range(n)) and {len(rows) - n // len(made) for rows in made} <= {0, 1}
            if n % (2 * parts) == 0: assert all([n - 1 - i for i in reversed(rows)] == rows for rows in made)   # mixup's pairs stay together

def test_blank_hides_runs_of_the_stated_length():
    kept = blank(200, 50, 2, 10, seed=3)
    assert kept.equal(blank(200, 50, 2, 10, seed=3)) and 0 < (kept == 0).sum(1).max() <= 18
    assert blank(5, 50, 0, 10, seed=3).all()

def test_mixup_weights_are_beta_and_shared_unless_per_modality():
    drawn = np.array([list(mixup_weights(("video", "audio"), .5, True, seed_of(0, k)).values()) for k in range(2000)])
    assert abs(drawn.mean() - .5) < .02 and abs(drawn.var() - .125) < .01 and abs(np.corrcoef(drawn.T)[0, 1]) < .06
    assert len(set(mixup_weights(("video", "audio"), .5, False, 1).values())) == 1

def test_losses_against_torch():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 6, generator=generator), torch.randint(0, 6, (8,), generator=generator)
    smooth = steps.smooth_labels(F.one_hot(labels, 6).float(), .3)
    torch.testing.assert_close(steps.softmax_loss(logits, smooth).mean(), F.cross_entropy(logits, labels, label_smoothing=.3))
    torch.testing.assert_close(steps.sigmoid_loss(logits, smooth), F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").sum(1))

def test_an_absent_modality_counts_for_nothing(corpus):
    made = recipe(corpus, "finetune", mixup=0.)
    task = Finetuning(made).train()
    torch.nn.init.normal_(task.model.head.weight, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    batch = Batch(torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.randn(3, 16_000, generator=generator),
                  torch.tensor([0, 1, 2]), list("abc"), {"video": torch.tensor([True] * 3), "audio": torch.tensor([True, True, False])}, [])
    loss = lambda b: task(task.frontend(b.inputs), b, task.draw(b, 0)).losses
    heard = part_of(batch, [0, 1])
    torch.testing.assert_close(loss(batch)["audio"], loss(heard)["audio"])
    assert loss(batch)["video"] != loss(heard)["video"]


# ---- checkpoints

WEIGHTS, STATE = {"w": torch.arange(12.).reshape(3, 4)}, {"step": 1, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "rng": torch.get_rng_state()}

def test_checkpoint_cut_at_any_byte_falls_back(tmp_path):
    for step in (1, 2): save_checkpoint(tmp_path, step, WEIGHTS, STATE)
    newest = checkpoints(tmp_path)[-1]
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for cut in sorted({0, 1, len(whole) - 1, *np.linspace(2, len(whole) - 2, 25).astype(int).tolist()}):
            file.write_bytes(whole[:cut])
            with pytest.warns(UserWarning, match=f"{newest.name} is damaged"): found = load_checkpoint(tmp_path)
            assert found.step == 1 and found.weights["w"].equal(WEIGHTS["w"])
        file.write_bytes(whole)
    assert load_checkpoint(tmp_path).step == 2

def test_a_flipped_bit_is_noticed(tmp_path):
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    file = checkpoints(tmp_path)[0]/"model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum of model.safetensors"): assert load_checkpoint(tmp_path) is None

def test_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return (Path.touch, (tmp_path/"owned",))
    save_checkpoint(tmp_path, 1, WEIGHTS, {"evil": Evil()})
    with pytest.warns(UserWarning, match="damaged"): assert load_checkpoint(tmp_path) is None
    assert not (tmp_path/"owned").exists()

def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, WEIGHTS, STATE)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))   # no file can grow beyond this, as on a full disk
    try:
        with pytest.raises(CheckpointError, match="cannot save step 2 .*step-00000001 is still there.*Make room"):
            save_checkpoint(tmp_path, 2, {"w": torch.zeros(10_000)}, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(tmp_path).step == 1 and [p.name for p in tmp_path.iterdir()] == ["step-00000001"]

def test_only_the_last_checkpoints_stay(tmp_path):
    for step in (5, 10, 15, 20): save_checkpoint(tmp_path, step, WEIGHTS, STATE, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]

def test_weights_carry_their_config(tmp_path):
    file = save_weights(tmp_path/"w.safetensors", WEIGHTS, {"model": {"size": "nano"}})
    assert load_weights(file)[1] == {"model": {"size": "nano"}}
    with pytest.raises(FileNotFoundError, match="does not exist"): load_weights(tmp_path/"none.safetensors")


# ---- runs

KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from avmae.train import checkpoint, engine
from avmae.train.recipes import get_recipe
moment, folder, root, kind = sys.argv[1:]
calls = 0
def dying(original, at):
    def call(*args):
        global calls
        calls += 1
        if calls == at: os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    return call
if moment == "step": engine.accumulate = dying(engine.accumulate, 6)
else: checkpoint.sync = dying(checkpoint.sync, 6)   # in the middle of the second save
more = {"drop_path": .3} if kind == "finetune" else {}
engine.fit(get_recipe(f"smoke_{kind}", **{"corpus.root": root, "checkpoint_every": 2}, **{f"model.{k}": v for k, v in more.items()}), folder, device="cpu", progress=False)
"""

@pytest.mark.parametrize("moment, kind", [("step", "finetune"), ("save", "pretrain")])
def test_a_killed_run_ends_with_the_same_bits(corpus, tmp_path, moment, kind):
    command = [sys.executable, "-c", KILLED, moment, str(tmp_path/"killed"), corpus, kind]
    died = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    made = recipe(corpus, kind, checkpoint_every=2, **({"model__drop_path": .3} if kind == "finetune" else {}))
    done = load_checkpoint(tmp_path/"killed"/"checkpoint").step
    assert done == {"step": 4, "save": 2}[moment]
    resumed, straight = run(made, tmp_path/"killed"), run(made, tmp_path/"straight")
    assert resumed["weights"] == straight["weights"] and resumed["result"] == straight["result"]
    numbers = lambda folder: read_metrics(folder).drop(columns=["seconds", "waited"])
    assert numbers(tmp_path/"killed").equals(numbers(tmp_path/"straight"))

@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_workers_change_nothing(corpus, tmp_path, kind):
    assert len({run(recipe(corpus, kind, workers=n, cache=n == 0, steps=3), tmp_path/str(n))["weights"] for n in (0, 2)}) == 1

def test_a_folder_of_decoded_clips_is_shared_and_changes_nothing(corpus, tmp_path, monkeypatch):
    kinds = ("pretrain", "finetune")
    alone = [run(recipe(corpus, kind, steps=3), tmp_path/f"{kind}-alone") for kind in kinds]
    monkeypatch.setenv("AVMAE_CACHE", str(tmp_path/"decoded"))
    first = [run(recipe(corpus, kind, steps=3), tmp_path/f"{kind}-first") for kind in kinds]
    kept = sorted(path.name for path in (tmp_path/"decoded").iterdir() if path.is_dir())
    monkeypatch.setattr(cache, "decode", None)   # nothing is decoded again, not even to score
    second = [run(recipe(corpus, kind, steps=3), tmp_path/f"{kind}-second") for kind in kinds]
    told = lambda records: [(record["weights"], record["config_hash"], {key: value for key, value in record["result"].items() if key != "seconds"}) for record in records]
    assert told(alone) == told(first) == told(second)
    assert len(kept) == 2 and kept == sorted(path.name for path in (tmp_path/"decoded").iterdir() if path.is_dir())   # training and test clips

def test_workers_leave_in_good_order(corpus):
    made = recipe(corpus, workers=2)
    manifest = open_manifest(made.corpus)
    data, workers = train_data(made, manifest, progress=False), []
    for _ in engine.ahead(begin(made, manifest, len(data)), make_loader(data, 4, workers=2, steps=5)): workers = workers or multiprocessing.active_children()
    assert [worker.exitcode for worker in workers] == [0, 0]   # otherwise PyTorch now and then takes the end for an accident

def test_a_killed_worker_is_told_of_and_the_run_goes_on(corpus, tmp_path, monkeypatch):
    made, original = recipe(corpus, workers=2, checkpoint_every=1), engine.train_step
    def kill(t, *rest):
        if t.step == 3: [os.kill(worker.pid, signal.SIGKILL) for worker in multiprocessing.active_children()]
        return original(t, *rest)
    with monkeypatch.context() as patch, pytest.raises(WorkerDied, match=r"a process that reads clips was killed: out of memory, perhaps\. Start fewer `workers`"):
        patch.setattr(engine, "train_step", kill)
        run(made, tmp_path/"run")
    assert load_checkpoint(tmp_path/"run"/"checkpoint").step < 8
    assert run(made, tmp_path/"run")["weights"] == run(recipe(corpus), tmp_path/"straight")["weights"]

LOST = [ConnectionResetError(104, "Connection reset by peer"), ConnectionRefusedError(111, "Connection refused"), EOFError(), FileNotFoundError(2, "No such file or directory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")]

@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_batch_that_is_lost_with_its_worker_tells_of_the_worker(corpus, error):
    class Lost:
        def __init__(self, error, workers): self.error, self.num_workers = error, workers
        def __iter__(self): raise self.error; yield
    manifest = open_manifest(recipe(corpus).corpus)
    loader = make_loader(train_data(recipe(corpus), manifest, progress=False), 4, steps=5)
    def first(*stub):
        loader.loader = Lost(*stub)
        return next(iter(loader))
    with pytest.raises(WorkerDied) as told: first(error, 2)
    assert told.value.__cause__ is error
    caught = type(error)("Caught an error in DataLoader worker process 0.")
    for other, workers in ((caught, 2), (error, 0)):   # what a living worker met, or this process, stays what it is
        with pytest.raises(type(error)) as told: first(other, workers)
        assert told.value is other

def test_accumulation_changes_nothing_but_rounding(corpus, tmp_path):
    weights = [load_model(tmp_path/str(parts))[0].state_dict() for parts in (1, 2, 4)
               if run(recipe(corpus, accumulate=parts, steps=4, optim__method="sgd", optim__lr=.01, optim__clip=1.), tmp_path/str(parts))]
    for other in weights[1:]:
        for name, w in weights[0].items(): torch.testing.assert_close(other[name], w, rtol=1e-5, atol=1e-6, msg=name)

def test_a_batch_short_of_clips_is_cut_into_as_many_parts(corpus):
    "Sharded processes meet in every part: one of them that could not read all its clips must not have fewer."
    batch, gradients = made_up(recipe(corpus), 3), []
    for parts in (1, 4):
        made = recipe(corpus, accumulate=parts)
        t, calls = begin(made, open_manifest(made.corpus), 12), []
        t.run.register_forward_hook(lambda *_: calls.append(1))
        work, _ = engine.prepare(t, batch, 0, None)
        losses = engine.accumulate(t, work, work.counts)
        assert len(calls) == parts and losses["loss"].isfinite()
        gradients.append({name: p.grad for name, p in t.task.model.named_parameters() if p.grad is not None})
    for name, grad in gradients[0].items(): torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-7, msg=name)

def test_training_learns(corpus, tmp_path):
    run(recipe(corpus, epochs=12, optim__lr=1e-2), tmp_path/"pretrain")
    losses = read_metrics(tmp_path/"pretrain")["loss"]
    assert losses.tail(5).mean() < .5 * losses.head(5).mean()
    run(recipe(corpus, "finetune", epochs=60, optim__method="adam", optim__lr=5e-3, mixup=0., label_smoothing=0., clips__flip=0.), tmp_path/"tuned")
    losses = read_metrics(tmp_path/"tuned")["loss"]
    assert losses.tail(5).mean() < .5 * math.log(12)

def test_signal_saves_and_leaves(corpus, tmp_path, monkeypatch):
    original, calls = engine.accumulate, []
    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)
    monkeypatch.setattr(engine, "accumulate", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3 of 8; saved in") as stop: run(recipe(corpus), tmp_path/"run")
    assert stop.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == handler
    assert load_checkpoint(tmp_path/"run"/"checkpoint").step == 3
    assert run(recipe(corpus), tmp_path/"run")["steps"] == 8

def poison(monkeypatch, bad: set) -> None:
    original = engine.accumulate
    def accumulate(t, *work):
        sums = original(t, *work)
        if t.step in bad: next(p for p in t.task.model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return sums
    monkeypatch.setattr(engine, "accumulate", accumulate)

def test_a_step_that_is_not_finite_is_skipped_and_counted(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {2, 3, 5})
    record = run(recipe(corpus), tmp_path/"run")
    assert record["skipped"] == 3 and all(w.isfinite().all() for w in load_weights(tmp_path/"run"/"model.safetensors")[0].values())

def test_three_in_a_row_stop_the_run_and_name_the_clips(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {2, 3, 4})
    with pytest.raises(NonFinite, match="steps 2 to 4.*nonfinite.json"): run(recipe(corpus), tmp_path/"run")
    listed = json.loads((tmp_path/"run"/"nonfinite.json").read_text())
    assert [b["step"] for b in listed] == [2, 3, 4] and all(len(b["ids"]) == 4 for b in listed)

def test_finished_run_is_left_alone_and_another_recipe_refused(corpus, tmp_path, monkeypatch):
    record = run(recipe(corpus, steps=2), tmp_path/"run")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", None)   # nothing may be trained
        assert run(recipe(corpus, steps=2, workers=1), tmp_path/"run") == record
    with pytest.raises(ValueError, match="optim.lr is 0.001 there and 0.5 here"): run(recipe(corpus, steps=2, optim__lr=.5), tmp_path/"run")
    with pytest.raises(ValueError, match="it is a pretrain run"): run(recipe(corpus, "finetune"), tmp_path/"run")

def test_a_folder_where_nothing_was_done_is_free(corpus, tmp_path):
    with pytest.raises(ValueError, match="set model.num_classes=12"): run(recipe(corpus, "finetune", model__num_classes=5, steps=1), tmp_path/"run")
    assert run(recipe(corpus, "finetune", steps=1), tmp_path/"run")["steps"] == 1

def test_finetuning_starts_from_what_was_learned(corpus, tmp_path):
    run(recipe(corpus, steps=3), tmp_path/"pre")
    made = recipe(corpus, "finetune", init_from=str(tmp_path/"pre"), steps=1)
    t = begin(made, open_corpus(made), 16)
    source, target = load_weights(tmp_path/"pre"/"model.safetensors")[0], t.task.model.state_dict()
    assert target["embed.patch.video.weight"].equal(source["embed.patch.video.weight"])
    assert target["blocks.audio.0.attn.qkv.weight"].equal(source["encoder.stacks.audio.blocks.0.attn.qkv.weight"])
    assert run(made, tmp_path/"tuned")["init_weights"] == run(recipe(corpus, steps=3), tmp_path/"pre")["weights"]
    with pytest.raises(ValueError, match="it started from other weights"): run(recipe(corpus, "finetune", steps=1), tmp_path/"tuned")
    with pytest.raises(FileNotFoundError, match="model.safetensors does not exist"): run(recipe(corpus, "finetune", init_from=str(tmp_path)), tmp_path/"x")
    with pytest.raises(ValueError, match="is a finetuned classifier"): run(recipe(corpus, "finetune", init_from=str(tmp_path/"tuned")), tmp_path/"y")

def test_record_answers_how_it_was_made(corpus, tmp_path):
    record = run(recipe(corpus, steps=2), tmp_path/"run")
    assert record["manifest"]["coverage"] == {"test": [12, 12], "train": [16, 16]} and record["config_hash"] == config_hash(recipe(corpus, steps=2).to_dict())
    assert {"git", "versions", "hardware", "seconds", "peak_memory", "threads", "seed", "modalities", "scale", "corpus"} <= record.keys()
    assert sorted(p.name for p in (tmp_path/"run").iterdir()) == ["config.json", "metrics.jsonl", "model.safetensors", "run.json", "tensorboard"]

def test_changed_corpus_is_not_resumed(tmp_path, monkeypatch):
    write_smoke_corpus(tmp_path/"vggsound")
    made = recipe(str(tmp_path/"vggsound"), cache=False)
    t = begin(made, open_corpus(made), 16)
    t.step = 1
    t.save(tmp_path/"run")
    open_manifest(made.corpus).split("train").file(0).unlink()
    with pytest.raises(ValueError, match="has changed since"): begin(made, open_corpus(made), 15, found=load_checkpoint(tmp_path/"run"/"checkpoint"))


# ---- bad corpora

def test_a_training_clip_that_cannot_be_read_is_counted(tmp_path):
    write_smoke_corpus(tmp_path/"vggsound")
    made = recipe(str(tmp_path/"vggsound"), steps=4)
    open_manifest(made.corpus).split("train").file(3).write_bytes(b"not a movie")
    with pytest.raises(RuntimeError, match="1 of 16 clips cannot be read"): run(made, tmp_path/"run")   # above one percent

def test_what_could_not_be_read_before_an_interruption_is_in_the_record(tmp_path, monkeypatch):
    write_smoke_corpus(tmp_path/"vggsound")
    made = recipe(str(tmp_path/"vggsound"), steps=8, max_failed=.1)
    clips = open_manifest(made.corpus).split("train")
    row = next(iter(TrainBatches(16, 4, made.seed, start_step=4)))[0][1]   # read in step 4, and not again
    clips.file(row).write_bytes(b"not a movie")
    original = engine.accumulate
    def interrupted(t, *work):
        if t.step == 5: os.kill(os.getpid(), signal.SIGINT)
        return original(t, *work)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "accumulate", interrupted)
        with pytest.raises(Interrupted, match="after step 6 of 8"): run(made, tmp_path/"run")
    record, straight = run(made, tmp_path/"run"), run(made, tmp_path/"straight")
    assert record["manifest"] == straight["manifest"] and record["weights"] == straight["weights"]
    assert record["manifest"]["failures"] == {clips[row].id: "undecodable"} and record["manifest"]["coverage"]["train"] == [15, 16]

@pytest.mark.parametrize("change, error, said", [
    (dict(root="{tmp}/nowhere"), FileNotFoundError, "nowhere: there is no such folder; set corpus.root"),
    (dict(root="{tmp}/empty"), FileNotFoundError, "there is no such table; set corpus.csv"),
    (dict(root="{tmp}/empty", csv="{tmp}/labels.csv", format="csv"), ValueError, "none of the 2 clips can be read"),
    (dict(root="{tmp}/empty", csv="{tmp}/labels.csv", format="csv", label_column="digit"), ValueError, "no column 'digit'"),
    (dict(root="{tmp}/empty", csv="{tmp}/labels.csv", format="csv", train_split="training"), ValueError, "no split 'training'")])
def test_bad_corpora_are_named(tmp_path, change, error, said):
    (tmp_path/"empty").mkdir()
    (tmp_path/"labels.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,train\n")
    changed = {key: value.format(tmp=tmp_path) for key, value in change.items()}
    made = override(get_recipe("smoke_pretrain", scale="mini"), {f"corpus.{key}": value for key, value in changed.items()})
    with pytest.raises(error, match=re.escape(said)): run(made, tmp_path/"run")

def test_unlabelled_clips_can_be_pretrained_on_but_not_finetuned(corpus, tmp_path):
    (tmp_path/"labels.csv").write_text("path,label,split\n" + "".join(f"{row.path},{'ab'[k % 2] if k else ''},train\n" for k, row in enumerate(open_manifest(recipe(corpus).corpus))))
    more = dict(corpus__format="csv", corpus__csv=str(tmp_path/"labels.csv"), steps=1)
    assert run(recipe(corpus, **more), tmp_path/"pre")["steps"] == 1
    with pytest.raises(ValueError, match="1 training clips, such as .*, have no label"): run(recipe(corpus, "finetune", **more, model__num_classes=2), tmp_path/"fine")


# ---- evaluation

def test_evaluation_is_the_mean_logit_of_all_windows(corpus, tmp_path):
    made = recipe(corpus, "finetune", steps=3, optim__lr=.5, clips__windows=2, model__modalities=["video"])
    run(made, tmp_path/"run")
    result = evaluate(tmp_path/"run", device="cpu", progress=False)["result"]
    model, task = load_model(tmp_path/"run")[0], Finetuning(made)
    from avmae.train.feed import test_data
    data, right = test_data(made, open_corpus(made), progress=False), []
    for clip in range(12):
        windows = [data[2 * clip + k] for k in range(2)]
        with torch.no_grad(): logits = sum(model(task.frontend({"video": w.video[None]})) for w in windows) / 2
        right.append(logits.argmax().item() == windows[0].labels[0])
    assert result["clips"] == 12 and result["windows"] == 2 and result["top1"] == pytest.approx(np.mean(right))

def test_evaluation_of_a_run_that_has_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match="the run has not finished"): evaluate(tmp_path)

def test_evaluation_is_done_once_and_survives_a_move(corpus, tmp_path, monkeypatch):
    run(recipe(corpus, steps=1), tmp_path/"run")
    first = evaluate(tmp_path/"run", device="cpu", progress=False)
    assert evaluate(tmp_path/"run", root="/nowhere", device="cpu") == first
    (tmp_path/"run").rename(tmp_path/"moved")
    again = evaluate(tmp_path/"moved", split="train", root=corpus, device="cpu", progress=False)
    assert again["result"] == first["result"] and again["result_train"]["clips"] == 16

def test_scores_count_only_labelled_clips():
    logits = torch.eye(6) * 3
    assert scores(logits, torch.tensor([0, 1, 2, 0, 0, -1]), "softmax")["top1"] == pytest.approx(3 / 5)
    assert scores(logits, torch.eye(6) * (torch.arange(6) < 4)[:, None], "sigmoid")["clips"] == 4

def test_metrics_against_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 9, generator=generator), torch.randint(0, 9, (300,), generator=generator)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    for k in (1, 5): assert top_k_correct(logits, labels, k).equal(ranks < k)
    assert top_k_correct(logits[:, :3], labels % 3, 5).all()
    wins = lambda s, y: np.mean([(a > b) + .5 * (a == b) for a in s[y] for b in s[~y]])
    truth = torch.rand(60, 3, generator=generator) < .3
    result = ranking(logits[:60, :3], truth.float())
    assert result.auc == pytest.approx(np.mean([wins(logits[:60, c].numpy(), truth[:, c].numpy()) for c in range(3)]))
    assert d_prime(result.auc) == result.d_prime and d_prime(.5) == 0 and d_prime(.921350) == pytest.approx(2., abs=1e-4)
    rows = torch.randint(0, 5, (40,), generator=generator)
    mean = average_by(rows, logits[:40], 5)
    torch.testing.assert_close(mean[3], logits[:40][rows == 3].mean(0))

def test_a_run_goes_on_past_bad_clips_if_the_recipe_allows_them(tmp_path):
    root = tmp_path/"vggsound"
    write_smoke_corpus(root)
    victim = sorted((root/"clips").glob("*.mp4"))
    train_ids = {line.split(",")[0] for line in (root/"vggsound.csv").read_text().splitlines() if line.endswith("train")}
    broken = next(path for path in victim if path.name[:11] in train_ids)
    broken.write_bytes(b"no media at all")
    values = {"corpus.root": str(root), "cache": False}
    with pytest.raises(TooManyFailures, match="raise max_failed"): fit(get_recipe("smoke_pretrain", **values), tmp_path/"run", device="cpu", progress=False)
    record = fit(get_recipe("smoke_pretrain", **values, max_failed=.1), tmp_path/"run", device="cpu", progress=False)
    assert list(record["manifest"]["failures"]) == [broken.stem] and record["manifest"]["coverage"]["train"] == [15, 16]
    with pytest.raises(ValueError, match="max_failed is a fraction"): get_recipe("smoke_pretrain", max_failed=2)
