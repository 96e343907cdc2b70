"What a run will cost: counted right, measured without a trace."
import pytest
import torch
from avmae.train import budget as budgets
from avmae.train.budget import checkpoint_bytes, flops_per_clip, made_up, measured_budget
from avmae.train.engine import fit
from avmae.train.feed import write_smoke_corpus
from avmae.train.recipes import RECIPES, get_recipe

CPU = torch.device("cpu")

@pytest.mark.parametrize("kind, more", [("pretrain", {"model.decode_ratio": .5}), ("finetune", {"model.drop_path": .3}), ("finetune", {"clips.repeats": 2, "accumulate": 2})])
def test_a_budget_first_changes_no_bit(tmp_path, kind, more):
    write_smoke_corpus(tmp_path/"vggsound")
    made = get_recipe(f"smoke_{kind}", **{"corpus.root": str(tmp_path/"vggsound"), "steps": 3, **more})
    before = fit(made, tmp_path/"before", device="cpu", progress=False)["weights"]
    state = torch.get_rng_state()
    measured_budget(made, 16, CPU, limit=1.)
    assert torch.get_rng_state().equal(state) and fit(made, tmp_path/"after", device="cpu", progress=False)["weights"] == before

def test_a_batch_that_takes_too_long_is_measured_in_part(monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda recipe, clips, device, limit: 2. * recipe.batch_size)
    found = measured_budget(get_recipe("vggsound_pretrain"), 172_427, CPU, limit=30.)
    assert (found.batch, found.measured_batch, found.steps) == (512, 5, 134_400) and found.clips_per_second == .5
    assert found.hours == pytest.approx(134_400 * 512 / .5 / 3600) and "measured with 5 clips" in repr(found)

def test_what_does_not_fit_is_halved_and_one_clip_that_does_not_is_an_error(monkeypatch):
    tried = []
    def step(recipe, clips, device, limit):
        tried.append(recipe.batch_size)
        if recipe.batch_size > 100: raise torch.OutOfMemoryError
        return 1.
    monkeypatch.setattr(budgets, "step_seconds", step)
    recipe, seconds = budgets._fitting(get_recipe("vggsound_pretrain"), 172_427, torch.device("cuda"), 10.)
    assert (recipe.batch_size, seconds, tried) == (64, 1., [512, 256, 128, 64])
    monkeypatch.setattr(budgets, "step_seconds", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError): budgets._fitting(get_recipe("vggsound_pretrain"), 172_427, torch.device("cuda"), 10.)

@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("smoke", "mini", "epic_kitchens", "audioset_finetune"))])
def test_every_kind_of_recipe_can_be_counted_and_fed(name):
    made = get_recipe(name)
    batch = made_up(made, 2)
    assert flops_per_clip(made) > 0 and set(batch.inputs) == set(made.modalities) and len(batch.labels) == 2

def test_arithmetic_grows_as_it_should():
    count = lambda **more: flops_per_clip(get_recipe("mini_vggsound_pretrain", **more))
    assert count(**{"model.mask_ratio": {"video": .9, "audio": .9}}) < count() < count(**{"model.layers": 6})
    assert count(**{"batch_size": 16, "recompute": True}) == count()
    pre, fine = get_recipe("smoke_pretrain"), get_recipe("smoke_finetune")
    assert (checkpoint_bytes(pre, 1000), checkpoint_bytes(fine, 1000)) == (12_000, 8_000)
