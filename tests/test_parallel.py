"One run in several processes against the same run in one."
import multiprocessing, os, signal, socket, subprocess, sys, traceback
from pathlib import Path
import pytest
import torch
from avmae.train import engine
from avmae.train.checkpoint import load_checkpoint
from avmae.train.engine import Interrupted, fit
from avmae.train.evaluate import evaluate
from avmae.train.feed import open_manifest, write_smoke_corpus
from avmae.train.launch import LaunchError, launch
from avmae.train.recipes import get_recipe
from avmae.train.record import read_json, read_metrics
from avmae.train.weights import load_model

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    "16 + 12 clips; every fifth file has no sound."
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    for clip in sorted(root.rglob("*.mp4"))[::5]: mute(clip)
    return root

def mute(clip: Path) -> None:
    import av
    silent = clip.with_suffix(".silent.mp4")
    with av.open(str(clip)) as source, av.open(str(silent), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None: continue
            packet.stream = stream
            target.mux(packet)
    silent.replace(clip)

def recipe(corpus: Path, kind: str = "pretrain", **overrides):
    "Plain SGD, whose steps are as small as its gradients: no rounding is blown up."
    calm = {"optim.method": "sgd", "optim.lr": .01, "optim.warmup_epochs": 0, "steps": 4, "batch_size": 8, "checkpoint_every": 2}
    return get_recipe(f"smoke_{kind}", **{"corpus.root": str(corpus), **calm, **{key.replace("__", "."): value for key, value in overrides.items()}})

def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def in_processes(n: int, work) -> list[int]:
    "Call `work()` in n forked processes that find each other as those of torchrun do; their exit codes."
    def run(rank: int, port: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
        torch.set_num_threads(1)
        try: work()
        except Interrupted as stop: os._exit(128 + stop.number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        if n > 1: torch.distributed.destroy_process_group()
        os._exit(0)
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=run, args=(rank, port)) for rank in range(n)]
    for process in processes: process.start()
    for process in processes: process.join(120)
    alive = [process for process in processes if process.is_alive()]
    for process in alive: process.kill()
    assert not alive, "processes wait for each other"
    return [process.exitcode for process in processes]

def trained(made, folder: Path, n: int) -> dict:
    "The record of a run in n processes, scored by all of them."
    def work():
        fit(made, folder, device="cpu", progress=False)
        evaluate(folder, device="cpu", progress=False)
    assert in_processes(n, work) == [0] * n
    return read_json(folder/"run.json")

def apart(a: Path, b: Path) -> float:
    "The largest difference between any two weights."
    there, here = load_model(a)[0].state_dict(), load_model(b)[0].state_dict()
    return max((w - here[name]).abs().max().item() for name, w in there.items())

EVERYTHING = dict(mixup=.5, label_smoothing=.1, model__drop_path=.3, circular_shift=True, freq_masks=1, time_masks=1, colour__jitter=.5, optim__clip=1.)

@pytest.mark.parametrize("kind, more", [("pretrain", {}), ("pretrain", dict(clips__repeats=2, model__objective="inpainting", model__shuffle_inpainted="aligned",
                                                           model__mask_ratio={"video": .5, "audio": .9})),
                                        ("pretrain", dict(model__decode_ratio=.5)), ("finetune", EVERYTHING)], ids=["plain", "repeats", "part", "finetune"])
def test_1x8_2x4_and_4x2_in_parts_agree(corpus, tmp_path, kind, more):
    one = trained(recipe(corpus, kind, **more), tmp_path/"1x8", 1)
    for name, n, ways in (("2x4", 2, {}), ("4x2", 4, {}), ("1x4+4", 1, dict(accumulate=2)), ("2x2+2", 2, dict(accumulate=2))):
        record = trained(recipe(corpus, kind, **more, **ways), tmp_path/name, n)
        assert apart(tmp_path/"1x8", tmp_path/name) < 1e-6, name
        assert record["processes"] == n and record["manifest"] == one["manifest"]
        for key in ("loss", "grad_norm"):
            torch.testing.assert_close(torch.tensor(read_metrics(tmp_path/name)[key]), torch.tensor(read_metrics(tmp_path/"1x8")[key]), rtol=2e-5, atol=1e-6)
        for key, value in one["result"].items():
            if key not in ("seconds",): assert record["result"][key] == pytest.approx(value, rel=1e-4), (name, key)

@pytest.mark.parametrize("shard", [False, True])
def test_another_number_of_processes_goes_on(corpus, tmp_path, monkeypatch, shard):
    adam = dict(optim__method="adam", optim__lr=1e-3, optim__eps=1e-3)
    trained(recipe(corpus, **adam), tmp_path/"straight", 1)
    original = engine.accumulate
    def interrupted(t, *work):
        if t.step == 2 and t.group.rank == 1: os.kill(os.getpid(), signal.SIGTERM)   # one of them is asked; all stop
        return original(t, *work)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "accumulate", interrupted)
        codes = in_processes(2, lambda: fit(recipe(corpus, shard=shard, **adam), tmp_path/"moved", device="cpu", progress=False))
    assert codes == [128 + signal.SIGTERM] * 2 and load_checkpoint(tmp_path/"moved"/"checkpoint").step == 3
    record = trained(recipe(corpus, **adam), tmp_path/"moved", 1)
    assert record["steps"] == 4 and apart(tmp_path/"straight", tmp_path/"moved") < 2e-6

def test_a_clip_that_one_process_cannot_read_is_known_to_all(tmp_path):
    write_smoke_corpus(tmp_path/"vggsound")
    made = recipe(tmp_path/"vggsound", max_failed=.1, cache=False)
    bad = {split: open_manifest(made.corpus).split(split).file(3) for split in ("train", "test")}
    for path in bad.values(): path.write_bytes(path.read_bytes()[:900])
    one, two = (trained(made, tmp_path/str(n), n)["manifest"] for n in (1, 2))
    assert one == two and len(two["failures"]) == 2 and two["coverage"] == {"train": [15, 16], "test": [11, 12]}
    assert apart(tmp_path/"1", tmp_path/"2") < 1e-6
    with pytest.raises(LaunchError, match="1 of 16 clips cannot be read, more than max_failed=0 allows"):
        launch(recipe(tmp_path/"vggsound", cache=False, max_failed=0.), tmp_path/"strict", processes=2, device="cpu", progress=False)

def test_launched_it_says_one_sentence_and_leaves_nobody_behind(corpus, tmp_path, capfd):
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared evenly by 3 processes"): launch(recipe(corpus), tmp_path/"no", processes=3)
    with pytest.raises(LaunchError, match="has 12 classes, but model.num_classes is 5: set model.num_classes=12"):
        launch(recipe(corpus, "finetune", model__num_classes=5), tmp_path/"wrong", processes=2, device="cpu", progress=False)
    assert "Traceback" not in capfd.readouterr().err
    done = launch(recipe(corpus), tmp_path/"run", processes=2, device="cpu", progress=False)
    assert done["processes"] == 2 and launch(recipe(corpus), tmp_path/"run", processes=2) == done   # the second time there is nothing to do

def test_torchrun_itself_starts_the_command(corpus, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avmae.cli", "pretrain", "smoke_pretrain",
               "--corpus.root", str(corpus), "--steps", "2", "--device", "cpu"]
    ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("test_loss ") == 1 and read_json(tmp_path/"runs"/"smoke"/"smoke_pretrain"/"run.json")["processes"] == 2
