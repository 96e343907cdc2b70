"""The experiments as jobs, each with its inputs and outputs. `make reproduce` calls snakemake --config scale=mini.

A job is a papermill notebook of nbs/experiments or nbs/paper: what it prints is in runs/SCALE/logs, the executed notebook in the run's
folder. A run is done when its run.json stands; one that was cut off is started again and goes on from its own checkpoint. All outputs are
marked `update` (and --keep-incomplete is given), because Snakemake else deletes what stands there before it starts a job again."""
import csv, fcntl, hashlib, json, os, shlex, sys
from pathlib import Path

SCALES = {   # train and test clips, recipes of avmae.train.recipes, seeds of finetuning, threads of pretraining
    "smoke": dict(clips=(16, 12), pretrain="smoke_pretrain", finetune="smoke_finetune", seeds=2, threads=1),
    "mini": dict(clips=(1440, 480), pretrain="mini_vggsound_pretrain", finetune="mini_vggsound_finetune", seeds=3, threads=1),
}
STARTS, INPUTS = ("pretrained", "scratch"), {"audiovisual": ["video", "audio"], "audio": ["audio"], "video": ["video"]}

scale = config.get("scale", "mini")
if scale not in SCALES: sys.exit(f"There is no scale {scale!r}; the scales are {', '.join(SCALES)}.")
plan = SCALES[scale]
runs, figures, corpus = f"runs/{scale}", f"paper_figures/{scale}", f"corpora/{scale}/vggsound"
finetuned = [f"{start}-{inputs}-seed{seed}" for start in STARTS for inputs in INPUTS for seed in range(plan["seeds"])]
# .ci/job.py says where a step stands among all; in the environment, because a parameter that changed would do the job again
os.environ["AVMAE_STEPS"] = " ".join(["corpus", "pretrain", *finetuned, "evaluate", "table_pretraining", "figure_reconstruction"])

def start(threads: int = 1) -> str:
    "How a job's command begins. Threads are fixed, not what the machine has, so that sums keep their order; waiting ones do not spin."
    return f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=passive exec {os.path.relpath(sys.executable)} .ci/job.py {{log}} {{params.command}}"

def papermill(folder: str, notebook: str, **parameters) -> str:
    "The command that executes a notebook, with these parameters, into this folder of the runs."
    executed = Path(runs, folder, Path(notebook).name)
    executed.parent.mkdir(parents=True, exist_ok=True)
    return shlex.join(["papermill", f"nbs/{notebook}", str(executed), "--kernel", "python3", "--no-progress-bar", "--log-output",
                       "--parameters_yaml", json.dumps(parameters)])

def code(notebook: str) -> str:
    "A hash of a notebook's code: a job is done again when its code changes, not when its words do."
    cells = json.loads(Path("nbs", notebook).read_text(encoding="utf-8"))["cells"]
    return hashlib.sha256("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").encode()).hexdigest()[:16]

def results(*names: str) -> list[str]:
    "Committed files."
    return [update(f"{figures}/{name}") for name in names]

rule all:   # the runs by name, because in a fresh clone the committed tables stand there without them
    input: expand(f"{runs}/{{run}}/run.json", run=["pretrain", *finetuned]), f"{figures}/runs.csv", f"{figures}/figure_reconstruction.png"

rule corpus:
    output: update(f"{corpus}/vggsound.csv")
    log: f"{runs}/logs/corpus.log"
    threads: workflow.cores
    params: command=f"avmae.cli mini {corpus} --corpus vggsound --train {plan['clips'][0]} --test {plan['clips'][1]}"
    shell: start()

rule pretrain:
    input: rules.corpus.output
    output: update(f"{runs}/pretrain/run.json"), weights=update(f"{runs}/pretrain/model.safetensors")
    log: f"{runs}/logs/pretrain.log"
    threads: plan["threads"]
    priority: 1
    params:
        command=papermill("pretrain", "experiments/pretrain.ipynb", recipe=plan["pretrain"], run=f"{runs}/pretrain"),
        code=code("experiments/pretrain.ipynb")
    shell: start(plan["threads"])

rule finetune:
    input: lambda w: rules.pretrain.output.weights if w.start == "pretrained" else rules.corpus.output
    output: update(f"{runs}/{{start}}-{{inputs}}-seed{{seed}}/run.json")
    log: f"{runs}/logs/{{start}}-{{inputs}}-seed{{seed}}.log"
    wildcard_constraints: start="|".join(STARTS), inputs="|".join(INPUTS), seed=r"\d+"
    params:
        command=lambda w, output: papermill(Path(output[0]).parent.name, "experiments/finetune.ipynb", recipe=plan["finetune"],
                                            run=str(Path(output[0]).parent), init_from=f"{runs}/pretrain" if w.start == "pretrained" else "",
                                            overrides={"seed": int(w.seed), "corpus.label_seed": int(w.seed), "model.modalities": INPUTS[w.inputs]}),
        code=code("experiments/finetune.ipynb")
    shell: start()

rule evaluate:   # each run has been scored already; this sets them side by side
    input: expand(f"{runs}/{{run}}/run.json", run=finetuned)
    output: update(f"{runs}/evaluate/evaluate.ipynb")
    log: f"{runs}/logs/evaluate.log"
    params:
        command=papermill("evaluate", "experiments/evaluate.ipynb", runs=[f"{runs}/{run}" for run in finetuned]),
        code=code("experiments/evaluate.ipynb")
    shell: start()

rule table_pretraining:
    input: rules.evaluate.output, f"{runs}/pretrain/run.json"
    output: *results("runs.csv", *(f"table_{name}.{suffix}" for name in ("pretraining", "fusion") for suffix in ("csv", "md", "tex")))
    log: f"{runs}/logs/table_pretraining.log"
    params:
        command=papermill("table_pretraining", "paper/table_pretraining.ipynb", runs=[f"{runs}/{run}" for run in ["pretrain", *finetuned]], out=figures),
        code=code("paper/table_pretraining.ipynb")
    shell: start()

rule figure_reconstruction:
    input: rules.pretrain.output
    output: *results("figure_reconstruction.png", "figure_reconstruction.svg")
    log: f"{runs}/logs/figure_reconstruction.log"
    params:
        command=papermill("figure_reconstruction", "paper/figure_reconstruction.ipynb", run=f"{runs}/pretrain", out=figures, clips=4),
        code=code("paper/figure_reconstruction.ipynb")
    shell: start()

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
    records = Path(figures, "runs.csv")
    if records.is_file():
        left = [row for row in csv.DictReader(records.open(encoding="utf-8")) if not Path(runs, row["run"], "run.json").exists()]
        seconds = sum(float(row["seconds"]) * (plan["threads"] if row["kind"] == "pretrain" else 1) for row in left) / max(1, workflow.cores or 1)
        print(f"{len(left)} runs to do; about {seconds / 60:.0f} minutes, if this machine is as fast as the one of the committed records.", flush=True)
