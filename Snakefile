"""The experiments as jobs, each with its inputs and outputs. `make reproduce` and `make paper` call snakemake --config goal=... scale=...

What there is to do stands in avmae.train.grid. A job is a papermill notebook of nbs/experiments or nbs/paper: what it prints is in
runs/SCALE/logs, the executed notebook in runs/SCALE/notebooks. A run is done when its run.json stands; one that was cut off is started again
and goes on from its own checkpoint. All outputs are marked `update` (and --keep-incomplete is given), because Snakemake else deletes what
stands there before it starts a job again."""
import csv, fcntl, hashlib, json, os, shlex, shutil, sys
from pathlib import Path
from avmae.train.grid import SCALES, jobs

scale, goal = config.get("scale", "mini"), config.get("goal", "paper")
if scale not in SCALES: sys.exit(f"There is no scale {scale!r}; the scales are {', '.join(SCALES)}.")
if goal not in ("paper", "reproduce"): sys.exit(f"There is no goal {goal!r}; the goals are paper and reproduce.")
plan = SCALES[scale]
runs, figures = f"runs/{scale}", f"paper_figures/{scale}"
SMALL = [f"{start}-finetune-seed{seed}" for start in ("scratch", "pretrained") for seed in range(plan.seeds)]   # jobs of `make reproduce`
todo = [job for job in jobs(scale, int(config.get("seeds", plan.seeds))) if goal == "paper" or job.name in ("pretrain", *SMALL)]
LISTS = {"vggsound": "vggsound.csv", "audioset": "eval_segments.csv", "epic_kitchens": "EPIC_100_validation.csv"}   # what is written last

# What a notebook of nbs/paper writes: tables (csv, md, tex), figures (png, svg) and files with a suffix of their own.
SOTA = [f"table_{kind}_{corpus}" for kind in ("sota", "ours") for corpus in LISTS]
FROM_RECORDS = {f"table_{name}": [f"table_{name}"] for name in ("strategies", "objectives", "modalities", "masking", "size", "length", "transfer")}
FROM_RECORDS["table_modalities"] += ["table_modalities_audioset"]
FROM_RECORDS |= {"table_sota": SOTA, "table_hyperparameters": [f"table_hyperparameters_{x}" for x in ("pretraining", "finetuning", "changed")],
                 "table_claims": ["table_claims", "claims.md"], "figure_epochs": ["figure_epochs"], "figure_masking": ["figure_masking"]}
CLIPS = {"figure_reconstruction": 4, "figure_inpainting": 2}
FROM_WEIGHTS = {"figure_reconstruction": "pretrain", "figure_inpainting": "inpainting-seed0"}
SEEN = {"figure_reconstruction": ["figure_reconstruction", "table_errors_reconstruction", "reconstructed.mp4"],
        "figure_inpainting": ["figure_inpainting", "table_errors_inpainting", "inpainted.mp4", "inpainted_audio.wav", "original_audio.wav"]}

def files(stem: str) -> list[str]:
    "What stands in the results for a table, a figure or a file."
    suffixes = [""] if "." in stem else [".csv", ".md", ".tex"] if stem.startswith("table") else [".png", ".svg"]
    return [f"{figures}/{stem}{suffix}" for suffix in suffixes]

def results(stems: list[str]) -> list[str]: return [update(file) for stem in stems for file in files(stem)]

def start(threads: int = 1) -> str:
    "How a job's command begins. Threads are fixed, not what the machine has, so that sums keep their order; waiting ones do not spin."
    return f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=passive exec {os.path.relpath(sys.executable)} .ci/job.py {{log}} {{params.command}}"

def papermill(job: str, notebook: str, **parameters) -> str:
    "The command that executes a notebook with these parameters."
    executed = Path(runs, "notebooks", f"{job}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    return shlex.join(["papermill", f"nbs/{notebook}", str(executed), "--kernel", "python3", "--no-progress-bar", "--log-output",
                       "--parameters_yaml", json.dumps(parameters)])

def code(notebook: str) -> str:
    "A hash of a notebook's code: a job is done again when its code changes, not when its words do."
    cells = json.loads(Path("nbs", notebook).read_text(encoding="utf-8"))["cells"]
    return hashlib.sha256("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").encode()).hexdigest()[:16]

def records(job) -> list[str]: return [f"{runs}/{run}/run.json" for run in job.runs]

def corpus_list(job) -> list[str]:
    "The list of a generated corpus, which has to be there first; real ones are yours to bring."
    return [f"corpora/{scale}/{job.corpus}/{LISTS[job.corpus]}"] if plan.clips else []

def command(job) -> str:
    "How a job of the grid calls its notebook."
    shared = dict(recipe=job.recipe, overrides=job.overrides, **({"processes": plan.gpus} if plan.gpus > 1 else {}))
    if job.kind == "pretrain": return papermill(job.name, "experiments/pretrain.ipynb", run=f"{runs}/{job.name}", **shared)
    several = {f"{runs}/{run}": changes for run, changes in job.runs.items()}
    return papermill(job.name, "experiments/finetune.ipynb", runs=several, init_from=f"{runs}/{job.init_from}" if job.init_from else "", **shared)

all_records = [path for job in todo for path in records(job)]
written = {name: [file for stem in stems for file in files(stem)] for name, stems in
           {**FROM_RECORDS, "table_runs": ["runs.csv", "table_runs"], "figure_strategies": [f"figure_{x}" for x in ("overview", "encoders", "decoders", "objectives")], **SEEN}.items()}
small_results = [f"{figures}/reproduce.csv", *files("table_pretraining"), *files("table_fusion"), *written["figure_reconstruction"]]
os.environ["AVMAE_CACHE"] = os.path.abspath(f"{runs}/decoded")   # small corpora are decoded once for all jobs (nbs/data/03_cache.ipynb)
# .ci/job.py says where a step stands among all; in the environment, because a parameter that changed would do the job again
os.environ["AVMAE_STEPS"] = " ".join([*dict.fromkeys(f"corpus_{job.corpus}" for job in todo), *(job.name for job in todo),
                                      *(["evaluate", "table_pretraining", "figure_reconstruction"] if goal == "reproduce" else [*written, "table_pretraining", "evaluate"])])

rule all:   # the runs by name, because in a fresh clone the committed tables stand there without them
    input: all_records, small_results if goal == "reproduce" else [*small_results, *sum(written.values(), []), f"{figures}/index.md"]

for corpus in dict.fromkeys(job.corpus for job in todo if plan.clips):
    rule:
        name: f"corpus_{corpus}"
        output: update(f"corpora/{scale}/{corpus}/{LISTS[corpus]}")
        log: f"{runs}/logs/corpus_{corpus}.log"
        threads: workflow.cores
        priority: 100
        params: command=f"avmae.cli mini corpora/{scale}/{corpus} --corpus {corpus} --train {plan.clips[0]} --test {plan.clips[1]}"
        shell: start()

for job in todo:
    rule:
        name: job.name.replace("-", "_")
        input: corpus_list(job), [f"{runs}/{job.init_from}/run.json", f"{runs}/{job.init_from}/model.safetensors"] if job.init_from else []
        output: [update(path) for path in records(job)], [update(f"{runs}/{job.name}/model.safetensors")] if job.kind == "pretrain" else []
        log: f"{runs}/logs/{job.name}.log"
        threads: plan.threads
        resources: gpu=plan.gpus
        priority: 50 - 2 * job.seed + (job.kind == "pretrain")   # seed by seed: what is cut off is whole for fewer seeds
        params: command=command(job), code=code(f"experiments/{job.kind}.ipynb")
        shell: start(plan.threads)

rule evaluate:   # each run has been scored already; this sets them side by side
    input: [path for job in todo if job.name in SMALL for path in records(job)]
    output: update(f"{runs}/notebooks/evaluate.ipynb")
    log: f"{runs}/logs/evaluate.log"
    params:
        command=papermill("evaluate", "experiments/evaluate.ipynb", runs=[f"{runs}/{run}" for job in todo if job.name in SMALL for run in job.runs]),
        code=code("experiments/evaluate.ipynb")
    shell: start()

rule table_pretraining:
    input: rules.evaluate.output, f"{runs}/pretrain/run.json"
    output: update(f"{figures}/reproduce.csv"), results(["table_pretraining", "table_fusion"])
    log: f"{runs}/logs/table_pretraining.log"
    params:
        command=papermill("table_pretraining", "paper/table_pretraining.ipynb", out=figures,
                          runs=[f"{runs}/{run}" for job in todo if job.name in ("pretrain", *SMALL) for run in job.runs]),
        code=code("paper/table_pretraining.ipynb")
    shell: start()

for figure, source in FROM_WEIGHTS.items():
    if f"{runs}/{source}/run.json" in all_records:
        rule:
            name: figure
            input: f"{runs}/{source}/run.json", f"{runs}/{source}/model.safetensors"
            output: results(SEEN[figure])
            log: f"{runs}/logs/{figure}.log"
            params: command=papermill(figure, f"paper/{figure}.ipynb", run=f"{runs}/{source}", out=figures, clips=CLIPS[figure]), code=code(f"paper/{figure}.ipynb")
            shell: start()

if goal == "paper":
    rule table_runs:
        input: all_records, rules.evaluate.output   # which may add scores
        output: results(["runs.csv", "table_runs"])
        log: f"{runs}/logs/table_runs.log"
        params:
            command=papermill("table_runs", "paper/table_runs.ipynb", runs=[str(Path(path).parent) for path in all_records], out=figures),
            code=code("paper/table_runs.ipynb")
        shell: start()

    rule figure_strategies:
        output: results([f"figure_{x}" for x in ("overview", "encoders", "decoders", "objectives")])
        log: f"{runs}/logs/figure_strategies.log"
        params: command=papermill("figure_strategies", "paper/figure_strategies.ipynb", recipe=plan.pretrain["audioset"], out=figures), code=code("paper/figure_strategies.ipynb")
        shell: start()

    for name, stems in FROM_RECORDS.items():
        rule:
            name: name
            input: f"{figures}/runs.csv"
            output: results(stems)
            log: f"{runs}/logs/{name}.log"
            params: command=papermill(name, f"paper/{name}.ipynb", records=f"{figures}/runs.csv", out=figures), code=code(f"paper/{name}.ipynb")
            shell: start()

    rule index:
        input: sum(written.values(), []), small_results
        output: update(f"{figures}/index.md")
        run:
            from avmae.paper.index import write_index
            write_index(figures, "nbs/paper")

onsuccess: shutil.rmtree(f"{runs}/decoded", ignore_errors=True)

onstart:
    # Held by every job too: after a kill, what was left working must end before the same runs are touched again.
    global lock
    lock = open(f"{runs}/.lock", "a+")
    os.set_inheritable(lock.fileno(), True)
    try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{runs} is in use by another call, or by what is left of one; waiting until that has ended.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)

    # What the runs that are still to be done took where the committed records were made.
    wanted, known = [Path(path).parent.name for path in all_records if not Path(path).exists()], Path(figures, "runs.csv" if goal == "paper" else "reproduce.csv")
    if known.is_file():
        took = {row["run"]: float(row["seconds"]) * plan.threads for row in csv.DictReader(known.open(encoding="utf-8"))}
        seconds = sum(took.get(run, 0) for run in wanted) / max(1, workflow.cores or 1)
        print(f"{len(wanted)} runs to do; about {seconds / 60:.0f} minutes, if this machine is as fast as the one of the committed records.", flush=True)
