"The grid of experiments: what the paper compares is in it, its recipes are the released ones, and Snakemake can plan it at every scale."
import re, subprocess, sys
from pathlib import Path
import pytest
import torch
from avmae.model.avmae import AVMAE
from avmae.model.classifier import AVClassifier, AVClassifierConfig
from avmae.train.grid import SCALES, grid, jobs
from avmae.train.recipes import get_recipe

ROOT = Path(__file__).parents[1]

def planned(scale: str) -> str:
    "What Snakemake says that it would do."
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT/"Snakefile"), "--cores", "2", "--config", f"scale={scale}", "goal=paper", "--dry-run", "--forceall", "--nolock", "--quiet", "host"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr

def listed(told: str) -> list[str]:
    "What `make paper DRY=1` makes of that."
    program = re.search(r"^LISTED = awk '(.*?)' runs", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M | re.S)[1].replace("$$", "$").replace("\\\n", "")
    return subprocess.run(["awk", program], input=told, capture_output=True, text=True, check=True).stdout.splitlines()

def differing(run: dict, other: dict) -> set[str]:
    "The fields of two recipes that are not the same."
    return {f"{prefix}{key}" for prefix, a, b in [("", run, other), ("model.", run["model"], other["model"])] for key in a if a[key] != b.get(key)} - {"model", "name"}

@pytest.mark.parametrize("scale", SCALES)
def test_every_pair_of_strategies_but_two_models_that_never_meet(scale):
    pretrained = [recipe for job in jobs(scale, seeds=1) for recipe in job.recipes().values() if job.kind == "pretrain" and re.search("-(shared|separate|joint)-", job.name)]
    pairs = {(recipe.model.encoder, recipe.model.decoder) for recipe in pretrained}
    assert len(pairs) == len(pretrained) == 11 and ("separate", "separate") not in pairs

@pytest.mark.parametrize("scale", SCALES)
def test_one_thing_at_a_time(scale):
    "What a variation is compared with differs from it in nothing but what its name says."
    made = {run: recipe.to_dict() for job in jobs(scale, seeds=1) for run, recipe in job.recipes().items()}
    usual = made["mid_fusion-shared-seed0"]
    allowed = {"inpainting": {"model.objective"}, "only": {"model.modalities", "model.encoder"}, "mask": {"model.mask_ratio"}, "epochs": {"epochs", "steps"}, "size": {"model.size"}}
    varied = {run: differing(recipe, usual) for run, recipe in made.items() if run.split("_")[0].split("-")[0] in allowed and re.fullmatch(r"[a-z]+(_\w+)?-seed0", run)}
    assert len(varied) >= 7
    for run, changed in varied.items(): assert changed and changed <= allowed[run.split("_")[0].split("-")[0]], run

@pytest.mark.parametrize("scale", SCALES)
def test_what_is_compared_is_finetuned_alike(scale):
    made = {run: recipe.to_dict() for job in jobs(scale, seeds=1) for run, recipe in job.recipes().items() if job.kind == "finetune"}
    usual = made["mid_fusion-shared-audiovisual-seed0"]
    for run, recipe in made.items():
        if run.endswith("audiovisual-seed0") and recipe["corpus"] == usual["corpus"] and not run.startswith(("size", "scratch", "pretrained", "audioset")):
            assert differing(recipe, usual) == set(), run

@pytest.mark.parametrize("scale", SCALES)
def test_what_starts_from_scratch_is_what_it_is_held_against(scale):
    "For every finetuning from a pretraining there is one from scratch that differs in nothing; of the strategies and the headline, with every input."
    made = {run: recipe.to_dict() for job in jobs(scale, seeds=1) for run, recipe in job.recipes().items() if job.kind == "finetune"}
    scratch = [recipe for run, recipe in made.items() if run.startswith("scratch")]
    for run, recipe in made.items(): assert sum(not differing(recipe, other) for other in scratch) == 1, run

@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "paper"])
def test_a_classifier_takes_over_what_it_starts_from(scale):
    made = jobs(scale, seeds=1)
    sources = {job.name: AVMAE(next(iter(job.recipes().values())).model) for job in made if job.kind == "pretrain"}
    for job in made:
        for run, recipe in job.recipes().items() if job.init_from else ():
            taken = AVClassifier(recipe.model).init_from(sources[job.init_from])
            assert {name.split(".")[1] for name, there in taken.items() if there and name.startswith("blocks")} == set(recipe.modalities), run

@pytest.mark.parametrize("scale", SCALES)
def test_sight_and_sound_exchange_within_every_classifier_of_both(scale):
    "Two fused layers at least: what the first writes into the bottlenecks is read by the second."
    both = {(recipe.model.stack_size.layers, recipe.model.fused_from) for job in jobs(scale, seeds=1) for recipe in job.recipes().values() if job.kind == "finetune" and len(recipe.modalities) == 2}
    assert both
    for layers, first in both:
        torch.manual_seed(0)
        model = AVClassifier(AVClassifierConfig(size="nano", layers=layers, num_classes=2, fusion_layer=first))
        sound = torch.randn(1, 32, 128, requires_grad=True)
        seen = model.encode({"video": torch.randn(1, 4, 3, 32, 32), "audio": sound})["video"]
        assert torch.autograd.grad(seen[..., 0].sum(), sound)[0].abs().max() > 0, (layers, first)   # what is seen depends on what is heard

def test_headline_of_the_paper_is_the_release():
    made = {run: recipe.to_dict() | {"name": ""} for job in jobs("paper") for run, recipe in job.recipes().items()}
    for run, name in {"pretrain": "vggsound_pretrain", "audioset": "audioset_pretrain", "audioset_only_audio": "audioset_pretrain_audio", "audioset_only_video": "audioset_pretrain_video",
                      **{f"pretrained-{inputs}-seed0": f"vggsound_finetune{suffix}" for inputs, suffix in [("audiovisual", ""), ("audio", "_audio"), ("video", "_video")]},
                      **{f"audioset-audioset-{inputs}-seed0": f"audioset_finetune{suffix}" for inputs, suffix in [("audiovisual", ""), ("audio", "_audio"), ("video", "_video")]},
                      **{f"audioset-epic_kitchens-{inputs}-seed0": f"epic_kitchens_finetune{suffix}" for inputs, suffix in [("audiovisual", ""), ("audio", "_audio"), ("video", "_video")]}}.items():
        assert made[run] == get_recipe(name).to_dict() | {"name": ""}, run

def test_unknown_scale_is_named():
    with pytest.raises(ValueError, match="no scale 'tiny'; the scales are smoke, mini, gpu, paper"): grid("tiny")

@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_snakemake_lists_every_job(scale):
    told = planned(scale)
    for job in jobs(scale): assert job.name.replace("-", "_") in told, job.name
    for name in ("table_strategies", "table_transfer", "table_claims", "figure_epochs", "figure_inpainting", "index"): assert f"rule {name}:" in told, name
    assert ("corpus_vggsound" in told) == (scale == "smoke")   # real corpora are the user's to bring
    *lines, last = listed(told)   # and `make paper DRY=1`, a job to a line
    assert sorted(line.split()[0] for line in lines) == sorted(set(re.findall(r"^rule (\w+):", told, re.M)) - {"all"}) and last.startswith(f"{len(lines)} jobs; ")
