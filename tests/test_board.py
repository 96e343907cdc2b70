"The board: what it shows is what the log says, it shows no step twice, and to look changes nothing."
import os, signal, sys
from pathlib import Path
import pytest
import torch
from avmae.train import engine
from avmae.train.board import clips_to_draw, reconstruct
from avmae.train.engine import fit
from avmae.train.feed import open_corpus, open_manifest, write_smoke_corpus
from avmae.train.recipes import get_recipe
from avmae.train.record import read_metrics
from avmae.train.state import build_task
from test_parallel import in_processes, mute

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return root

def recipe(corpus: Path, kind: str = "pretrain", **overrides):
    return get_recipe(f"smoke_{kind}", **{"corpus.root": str(corpus), "checkpoint_every": 3, **{key.replace("__", "."): value for key, value in overrides.items()}})

def run(made, folder: Path) -> dict:
    return fit(made, folder, device="cpu", progress=False)

def shown(folder: Path) -> tuple[dict, dict]:
    "Curves {name: [(step, value)]} and pictures {name: [(step, height, width)]}, as TensorBoard reads them."
    found = event_accumulator.EventAccumulator(str(folder/"tensorboard"), {"scalars": 0, "images": 0}).Reload()
    return ({name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]},
            {name: [(e.step, e.height, e.width) for e in found.Images(name)] for name in found.Tags()["images"]})

def without_tensorboard(patch) -> None:
    patch.setitem(sys.modules, "torch.utils.tensorboard", None)


def test_the_curves_are_the_log_and_pictures_come_with_every_checkpoint(corpus, tmp_path):
    run(made := recipe(corpus), tmp_path/"run")
    log, (curves, pictures) = read_metrics(tmp_path/"run"), shown(tmp_path/"run")
    for name in ("loss", "loss_video", "loss_audio", "lr", "grad_norm", "skipped", "epoch"):
        assert [step for step, _ in curves[name]] == log["step"].tolist() == list(range(8))
        assert [x for _, x in curves[name]] == pytest.approx(log[name].tolist(), rel=1e-6)
    assert [x for _, x in curves["speed/clips_per_second"]] == pytest.approx((4 / log["seconds"]).tolist(), rel=1e-6)
    assert [x for _, x in curves["speed/reading_share"]] == pytest.approx((log["waited"] / log["seconds"]).tolist(), rel=1e-6, abs=1e-9)
    assert all(.01 < x < 1000 for _, x in curves["memory_GB"])
    assert sorted(pictures) == sorted(f"{id}/{m}" for id in open_manifest(made.corpus).split("test")["id"][:2] for m in ("audio", "video"))
    assert {tuple(x[0] for x in each) for each in pictures.values()} == {(2, 5, 7)}   # after 3, 6 and 8 steps
    assert {each[0][1:] for each in pictures.values()} == {(3 * 32, 3 * 32), (3 * 128, 96)}

def test_finetuning_has_curves_and_no_pictures(corpus, tmp_path):
    run(recipe(corpus, "finetune", steps=3), tmp_path/"run")
    curves, pictures = shown(tmp_path/"run")
    assert len(curves["loss"]) == 3 and not pictures

@pytest.mark.parametrize("more", [{}, dict(model__decode_ratio=.5, model__standardise_targets=True),
                                  dict(model__objective="inpainting", model__shuffle_inpainted="aligned", model__mask_ratio={"video": .5, "audio": .9}), dict(model__modalities=["audio"], model__encoder="shared")],
                         ids=["plain", "part", "inpainting", "sound"])
def test_to_look_changes_nothing(corpus, tmp_path, monkeypatch, more):
    seen = run(recipe(corpus, steps=5, checkpoint_every=1, **more), tmp_path/"seen")
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        without_tensorboard(patch)
        unseen = run(recipe(corpus, steps=5, **more), tmp_path/"unseen")
    assert (tmp_path/"seen"/"tensorboard").is_dir() and not (tmp_path/"unseen"/"tensorboard").exists()
    assert seen["weights"] == unseen["weights"] and torch.get_rng_state().equal(state)
    numbers = lambda folder: read_metrics(folder).drop(columns=["seconds", "waited"])
    assert numbers(tmp_path/"seen").equals(numbers(tmp_path/"unseen"))

@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.parametrize("shard", [False, True])
def test_one_of_several_processes_writes_and_to_look_changes_nothing(corpus, tmp_path, monkeypatch, shard):
    made = recipe(corpus, steps=4, checkpoint_every=2, shard=shard)
    def both():
        run(made, tmp_path/"seen")
        without_tensorboard(monkeypatch)   # in this process, which ends here
        run(made, tmp_path/"unseen")
    assert in_processes(2, both) == [0, 0]
    curves, pictures = shown(tmp_path/"seen")
    assert [step for step, _ in curves["loss"]] == [0, 1, 2, 3] and {tuple(x[0] for x in each) for each in pictures.values()} == {(1, 3)}
    assert len(list((tmp_path/"seen"/"tensorboard").iterdir())) == 1 and not (tmp_path/"unseen"/"tensorboard").exists()
    assert engine.file_digest(tmp_path/"seen"/"model.safetensors") == engine.file_digest(tmp_path/"unseen"/"model.safetensors")

@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.parametrize("cut", [0, 7])
def test_a_killed_run_shows_every_step_once(corpus, tmp_path, monkeypatch, cut):
    original = engine.accumulate
    def dying(t, *work):
        if t.step == 5: os.kill(os.getpid(), signal.SIGKILL)   # two steps after the checkpoint
        return original(t, *work)
    def first_life():
        monkeypatch.setattr(engine, "accumulate", dying)
        run(recipe(corpus), tmp_path/"run")
    assert in_processes(1, first_life) == [-signal.SIGKILL]
    events, = (tmp_path/"run"/"tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:events.stat().st_size - cut])   # a line that was not written to its end
    run(recipe(corpus), tmp_path/"run")
    curves, pictures = shown(tmp_path/"run")
    assert all([step for step, _ in each] == list(range(8)) for each in curves.values())
    assert {tuple(x[0] for x in each) for each in pictures.values()} <= {(2, 5, 7), (5, 7)} and len(pictures) == 4

def test_a_run_that_saved_nothing_begins_anew(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "update", lambda optimizer, rate, update=engine.update: update(optimizer, rate) if rate < 7e-4 else 1 / 0)   # in the fourth step
        with pytest.raises(ZeroDivisionError): run(recipe(corpus, checkpoint_every=100), tmp_path/"run")
    assert len(shown(tmp_path/"run")[0]["loss"]) == 3
    run(recipe(corpus), tmp_path/"run")
    assert [step for step, _ in shown(tmp_path/"run")[0]["loss"]] == list(range(8))


def test_clips_that_cannot_be_read_or_lack_something_are_passed_over(tmp_path):
    write_smoke_corpus(tmp_path/"vggsound")
    made = recipe(tmp_path/"vggsound")
    clips = open_manifest(made.corpus).split("test")
    clips.file(0).write_bytes(clips.file(0).read_bytes()[:900])
    mute(clips.file(1))
    ids, manifest = clips["id"], open_corpus(made)
    assert clips_to_draw(made, manifest).ids == ids[2:4]
    assert clips_to_draw(recipe(tmp_path/"vggsound", model__modalities=["video"], model__encoder="shared"), manifest).ids == ids[1:3]
    for row in range(12): clips.file(row).write_bytes(b"no media")
    assert clips_to_draw(made, open_corpus(made)).ids == open_manifest(made.corpus).split("train")["id"][:2]

@pytest.mark.parametrize("standardise", [False, True])
def test_a_perfect_prediction_completes_the_original(corpus, standardise, monkeypatch):
    made = recipe(corpus, model__standardise_targets=standardise)
    task = build_task(made)
    forward = task.model.forward
    def perfect(*args, **more):
        out = forward(*args, **more)
        return out._replace(predictions=out.targets)
    monkeypatch.setattr(task.model, "forward", perfect)
    for views in reconstruct(task, clips_to_draw(made, open_corpus(made))).values():
        assert views.shown.isnan().any() and (views.completed - views.original).abs().max() < 1e-4
