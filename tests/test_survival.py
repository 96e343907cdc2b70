"Runs that are killed, at any moment and many times, end with the bits of one that nobody disturbed."
import os, select, shutil, signal, time, traceback
from pathlib import Path
import numpy as np
import pytest
import torch
from avmae.train import engine
from avmae.train.checkpoint import load_checkpoint
from avmae.train.engine import Interrupted, fit
from avmae.train.evaluate import evaluate
from avmae.train.feed import write_smoke_corpus
from avmae.train.launch import LaunchError, launch
from avmae.train.recipes import get_recipe
from avmae.train.record import read_json, read_metrics
from test_parallel import in_processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are forked, and looked for in /proc")
KILLS = 25   # of each kind of run
MOREOVER = {"pretrain": {"model.decode_ratio": .5}, "finetune": {"model.drop_path": .3}}   # chance in the network too

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return root

def recipe(corpus: Path, kind: str, **overrides):
    return get_recipe(f"smoke_{kind}", **{"corpus.root": str(corpus), "batch_size": 2, "steps": 60, "checkpoint_every": 2, **MOREOVER[kind], **overrides})

def left_by(folder: Path) -> tuple:
    "The record with the digest of the weights, the log, and the files; without what a clock says, or somebody who edits the source meanwhile."
    record, log = read_json(folder/"run.json"), read_metrics(folder).drop(columns=["seconds", "waited"])
    for key in ("name", "git", "seconds", "clips_per_second", "reading_share", "peak_memory"): del record[key]
    record["result"].pop("seconds", None)
    return record, log.to_dict("list"), sorted(path.name for path in folder.iterdir() if path.name != "tensorboard")

class Life:
    "A forked process that does `work`; `begun` is readable from when it trains on."
    def __init__(self, work, watched: bool = True):
        self.begun, told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            train = engine.train
            def telling(*args):
                os.write(told, b"!")
                train(*args)
            if watched: engine.train = telling
            torch.set_num_threads(1)
            self.be(work)
        os.close(told)

    def be(self, work) -> None:
        try: work()
        except Interrupted as stop: os._exit(128 + stop.number)
        except LaunchError: os._exit(3)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def end(self, number: int | None = None) -> int:
        "Send a signal, wait for the end; what `os.waitstatus_to_exitcode` says."
        if number: os.kill(self.pid, number)
        os.close(self.begun)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

def half_saved(folder: Path) -> set:
    "Checkpoints that were not finished, or not quite forgotten."
    found = set()
    for path in (folder/"checkpoint").glob(".*"):
        try: found.add((path.name, path.stat().st_ino))
        except FileNotFoundError: pass   # it has just been finished
    return found

def wait_for_the_moment(life: Life, folder: Path, rng: np.random.Generator, pace: float) -> None:
    "For some time: a fifth of all kills come while a run begins, two fifths while it trains and saves, two fifths soon after the beginning of a save."
    when = rng.random()
    if when < .2: return time.sleep(rng.random() * .2)
    select.select([life.begun], [], [], 60)
    time.sleep(rng.exponential(3 * pace))
    if when < .6: return
    before, end = half_saved(folder), time.monotonic() + 10 * pace
    while half_saved(folder) <= before and time.monotonic() < end: time.sleep(.0005)
    time.sleep(rng.exponential(pace / 5))

def killed_again_and_again(made, folder: Path, pace: float) -> tuple[list[Path], int, int]:
    "Live and kill until KILLS have been survived, then live to the end; the folders of all runs that ended, how many kills there were and how many hit a save."
    rng, folders, kills, in_save = np.random.default_rng(0), [folder/"0"], 0, 0
    while True:
        before, life = half_saved(folders[-1]), Life(lambda: fit(made, folders[-1], device="cpu", progress=False))
        if kills < KILLS: wait_for_the_moment(life, folders[-1], rng, pace)
        code = life.end(signal.SIGKILL if kills < KILLS else None)
        assert code in (0, -signal.SIGKILL)
        if code:
            kills, in_save = kills + 1, in_save + (half_saved(folders[-1]) != before)
        elif kills == KILLS: return folders, kills, in_save
        else: folders.append(folder/str(len(folders)))   # it was quicker than the killer

@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_25_kills_at_random_moments_change_no_bit(corpus, tmp_path, kind, record_property):
    made = recipe(corpus, kind)
    assert Life(lambda: fit(made, tmp_path/"straight", device="cpu", progress=False)).end() == 0
    straight, expected = read_json(tmp_path/"straight"/"run.json"), left_by(tmp_path/"straight")
    folders, kills, in_save = killed_again_and_again(made, tmp_path/"killed", straight["seconds"] / straight["steps"])
    for name, value in dict(kills=kills, in_save=in_save, runs=len(folders)).items(): record_property(name, value)
    print(f"{kind}: {kills} kills, {in_save} of them in a save; {len(folders)} runs ended")
    assert kills == KILLS and in_save >= 3
    for folder in folders: assert left_by(folder) == expected

def test_killed_at_every_write_of_a_save_and_of_the_end(corpus, tmp_path):
    made, ends = recipe(corpus, "finetune", steps=2, checkpoint_every=1, cache=False), 0
    assert Life(lambda: fit(made, tmp_path/"straight", device="cpu", progress=False)).end() == 0
    while True:   # the next life dies one call later
        def work(calls=[ends + 1]):
            for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree")):
                def dying(*args, original=getattr(module, name), **more):
                    calls[0] -= 1
                    if not calls[0]: os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **more)
                setattr(module, name, dying)
            fit(made, tmp_path/f"killed{ends}", device="cpu", progress=False)
        code = Life(work).end()
        if not code: break
        assert code == -signal.SIGKILL
        assert Life(lambda: fit(made, tmp_path/f"killed{ends}", device="cpu", progress=False)).end() == 0
        assert left_by(tmp_path/f"killed{ends}") == left_by(tmp_path/"straight"), ends
        ends += 1
    print(f"killed at each of {ends} calls")
    assert ends >= 20


# ---- two processes

def workers_of(folder: Path) -> dict[int, int]:
    "{rank: pid} of the processes that train in a folder."
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try: command, environment = (process/"cmdline").read_bytes(), (process/"environ").read_bytes().split(b"\0")
        except OSError: continue
        rank = [int(value.split(b"=")[1]) for value in environment if value.startswith(b"RANK=")]
        if str(folder).encode() in command and rank: found[rank[0]] = int(process.name)
    return found

def alive(folder: Path) -> list[str]:
    "Commands that name a folder."
    commands = {}
    for process in Path("/proc").glob("[0-9]*"):
        try: commands[process] = (process/"cmdline").read_bytes().decode()
        except OSError: continue
    return [command for command in commands.values() if str(folder) in command]

def wait_for_step(folder: Path, step: int) -> None:
    "Until the log is so long."
    end = time.monotonic() + 180
    while not (folder/"metrics.jsonl").exists() or (folder/"metrics.jsonl").read_text().count("\n") < step:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(.005)

def test_two_processes_survive_kills_and_a_signal(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made, rng = recipe(corpus, "pretrain", checkpoint_every=6), np.random.default_rng(0)
    def trained(folder): fit(made, folder, device="cpu", progress=False); evaluate(folder, device="cpu", progress=False)
    assert in_processes(2, lambda: trained(tmp_path/"straight")) == [0, 0]
    folder = tmp_path/"disturbed"
    start = lambda: Life(lambda: launch(made, folder, processes=2, device="cpu", progress=False), watched=False)
    for step, rank in ((8, 1), (20, 0)):
        life = start()
        wait_for_step(folder, step)
        time.sleep(rng.exponential(.02))
        os.kill(workers_of(folder)[rank], signal.SIGKILL)
        assert life.end() == 3 and not alive(folder)   # a LaunchError
    life, _ = start(), capfd.readouterr()
    wait_for_step(folder, 35)
    assert life.end(signal.SIGTERM) == 128 + signal.SIGTERM and not alive(folder)
    lines = (folder/"metrics.jsonl").read_text().count("\n")
    assert load_checkpoint(folder/"checkpoint").step == lines < 60   # it saved what it had done
    assert "Traceback" not in capfd.readouterr().err
    assert in_processes(2, lambda: trained(folder)) == [0, 0]
    assert left_by(folder) == left_by(tmp_path/"straight") and read_json(folder/"run.json")["processes"] == 2
