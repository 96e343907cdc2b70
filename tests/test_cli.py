"The command line: one sentence for what goes wrong, an exit status that tells, and nothing lost by Ctrl-C."
import errno, inspect, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
from avmae.cli import COMMANDS, main
from avmae.options import gather_overrides, recipe_options
from avmae.data.mini import write_mini_audioset, write_mini_epic_kitchens, write_mini_vggsound
from avmae.train.feed import write_smoke_corpus
from avmae.train.recipes import RECIPES, get_recipe
from avmae.train.record import dotted
from avmae.train.weights import load_model
from published import finetuned, train_state, write

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return str(root)

@pytest.fixture
def avmae(capsys, monkeypatch, tmp_path):
    "Run a command line in an empty folder -> (status, stdout, stderr)."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)   # `main` sets it; put back afterwards
    def call(*words: str) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out.strip(), "\n".join(line.split("\r")[-1] for line in err.splitlines() if "%|" not in line).strip()
    return call

def test_help_names_every_command_and_costs_no_torch():
    code = "import sys, avmae.cli; avmae.cli.main(['--help']); sys.exit(3 if {'torch', 'av', 'pandas'} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(re.search(rf"^\W*{name}\b", done.stdout, re.M) for name in COMMANDS)

@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(avmae, command):
    status, out, _ = avmae(command, "--help")
    assert status == 0 and COMMANDS[command].__doc__.split(".")[0] in " ".join(out.split())

def test_help_of_a_recipe_lists_every_number_with_its_value():
    for name in RECIPES:
        listed = recipe_options(name).splitlines()
        assert {line.split()[0].removeprefix("--") for line in listed} == dotted(get_recipe(name).to_dict()).keys() - {"name"}
    line = next(line for line in recipe_options("smoke_pretrain").splitlines() if "--optim.lr " in line)
    assert line.split()[1] == "0.001" and "peak learning rate" in line

def test_recipes_are_listed(avmae):
    status, out, _ = avmae("recipes")
    assert status == 0 and all(name in out for name in RECIPES)

@pytest.mark.parametrize("behind", [write_mini_vggsound, write_mini_audioset, write_mini_epic_kitchens])
def test_mini_has_the_defaults_of_the_function_behind_it(behind):
    ours, theirs = (inspect.signature(f).parameters for f in (COMMANDS["mini"], behind))
    for name in ("train", "test", "seed"): assert ours[name].default == theirs[name].default

def test_mini_writes_a_corpus(avmae, tmp_path):
    status, out, _ = avmae("mini", "here", "--train", 2, "--test", 1)
    assert status == 0 and Path(out) == Path("here/vggsound.csv") and len(list((tmp_path/"here").rglob("*.mp4"))) == 3

@pytest.mark.parametrize("corpus, files", [("audioset", {"balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv", "class_labels_indices.csv"}),
                                           ("epic_kitchens", {"EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"})])
def test_mini_writes_the_lists_of_each_corpus(avmae, tmp_path, corpus, files):
    status, out, _ = avmae("mini", "here", "--corpus", corpus, "--train", 2, "--test", 1)
    assert status == 0 and out == "here" and {p.name for p in (tmp_path/"here").glob("*.csv")} == files

@pytest.mark.parametrize("line, status, said", [
    ("pretrian", 2, "there is no command 'pretrian'; did you mean pretrain"),
    ("pretrain", 2, "RECIPE"),
    ("pretrain smok_pretrain", 2, "there is no recipe 'smok_pretrain'; did you mean 'smoke_pretrain'"),
    ("pretrain smoke_finetune", 2, "is a recipe for `avmae finetune`"),
    ("pretrain smoke_pretrain --optim.lrr 1", 2, "a recipe has no 'optim.lrr'; did you mean 'optim.lr'"),
    ("pretrain smoke_pretrain --optim.lr fast", 2, "optim.lr must be a number, not 'fast'"),
    ("pretrain smoke_pretrain --optim.lr", 2, "--optim.lr needs a value"),
    ("pretrain smoke_pretrain --set seed", 2, "--set takes KEY=VALUE"),
    ("pretrain smoke_pretrain --device gpu", 1, "cpu and cuda"),
    ("pretrain mini_vggsound_pretrain", 1, "corpora/mini/vggsound: there is no such folder; set corpus.root to the folder of the media files, or write the miniature one"),
    ("pretrain mini_vggsound_pretrain --corpus.root empty", 1, "there is no such table; set corpus.csv"),
    ("pretrain mini_vggsound_pretrain --corpus.root empty --corpus.csv clips.csv --corpus.format csv", 1, "there is no column 'path' among 'file', 'label'; say which one to use"),
    ("pretrain mini_vggsound_pretrain --corpus.root empty --corpus.csv clips.csv --corpus.format csv --corpus.path-column file --corpus.split-column null",
     1, "none of the 1 clips can be read"),
    ("finetune smoke_finetune --init-from nowhere", 1, "does not exist: name the folder of a finished run"),
    ("convert nowhere x.safetensors", 1, "nowhere does not exist; give the path of a downloaded checkpoint"),
    ("convert empty/clips.csv x.safetensors", 1, "empty/clips.csv is not a checkpoint of the release"),
    ("convert empty x.safetensors", 1, "empty is a folder"),
    ("convert nowhere x.bin", 2, "OUT must end in .safetensors"),
    ("evaluate", 2, "at least one run"),
    ("evaluate nowhere", 1, "nowhere/run.json does not exist: the run has not finished")])
def test_mistakes_are_one_sentence(avmae, tmp_path, line, status, said):
    (tmp_path/"empty").mkdir()
    (tmp_path/"empty"/"clips.csv").write_text("file,label\na.mp4,x\n")
    ended, out, err = avmae(*line.split())
    assert ended == status and said in err and "Traceback" not in err and not out
    if line != "pretrain": assert err.startswith("avmae: ") and len(err.splitlines()) == 1   # tyro draws what it says itself

def test_convert(avmae, tmp_path):
    (tmp_path/"checkpoint").write_bytes(b"\x81\xa6params\x80")
    assert avmae("convert", "checkpoint", "x.safetensors") == (1, "", "avmae: checkpoint: this is not a pretraining tree: it lacks embedding_<modality>, or a decoder.")
    write(tmp_path/"finetuned", train_state(finetuned(("rgb", "spectrogram"), 7, size=(32, 2, 64, 2)), "finetune"))
    status, out, err = avmae("convert", "finetuned", "x.safetensors")
    assert status == 1 and err == "avmae: finetuned: nothing in the names says where fusion starts; pass fusion_layer=."
    status, out, err = avmae("convert", "finetuned", "x.safetensors", "--fusion-layer", 1)
    assert (status, err) == (0, "") and out == "x.safetensors: a finetuned nano model of video and audio; left out: nothing"
    assert load_model(tmp_path/"x.safetensors")[0].config.fused_from == 1
    assert avmae("convert", "finetuned", "x.safetensors", "--fusion-layer", 1)[0] == 1

def test_options_of_a_recipe_become_overrides():
    told = gather_overrides({"--run", "--init-from", "--device"}, ["r", "--optim.lr", "-1", "--run=x", "--clips.flip=0", "--set", "a=1", "b=2", "--init-from", "y", "--device", "cpu"])
    assert told == ["r", "--run=x", "--init-from", "y", "--device", "cpu", "--set", "optim.lr=-1", "clips.flip=0", "a=1", "b=2"]

def test_pretrain_finetune_evaluate(avmae, corpus, tmp_path):
    common = ["--corpus.root", corpus, "--steps", 2, "--device", "cpu"]
    status, out, _ = avmae("pretrain", "smoke_pretrain", *common)
    assert status == 0 and out.startswith("runs/smoke/smoke_pretrain: ") and "12 of 12 test clips" in out
    status, out, _ = avmae("finetune", "smoke_finetune", "--init-from", "runs/smoke/smoke_pretrain", "--run", "tuned", "--model.modalities", "audio", *common)
    assert status == 0 and "top1" in out
    record = json.loads((tmp_path/"tuned"/"run.json").read_text())
    assert record["modalities"] == ["audio"] and record["init_from"] == "runs/smoke/smoke_pretrain" and record["steps"] == 2
    status, out, _ = avmae("evaluate", "tuned", "--split", "train", "--windows", 2)
    assert status == 0 and out.startswith("tuned: top1") and "16 of 16 train clips" in out
    status, _, err = avmae("pretrain", "smoke_pretrain", *common, "--seed", 9)
    assert status == 1 and "holds another run (seed is 0 there and 9 here)" in err

def test_a_mistake_of_the_program_is_not_hidden(monkeypatch):
    def broken(): raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setitem(COMMANDS, "recipes", broken)
    with pytest.raises(RuntimeError, match="mat1"): main(["recipes"])

@pytest.mark.parametrize("number, said", [(errno.ENOSPC, "a.mp4: the disk is full; make room and run the same command again, what was finished is kept."),
                                          (errno.EACCES, "a.mp4: permission denied.")])
def test_errors_of_the_system_name_the_file_and_the_remedy(avmae, monkeypatch, number, said):
    def full(): raise OSError(number, os.strerror(number), "a.mp4")
    monkeypatch.setitem(COMMANDS, "recipes", full)
    assert avmae("recipes") == (1, "", f"avmae: {said}")

@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_so_and_the_run_goes_on(corpus, tmp_path, number, status):
    command = [sys.executable, "-m", "avmae.cli", "pretrain", "smoke_pretrain", "--run", "run", "--corpus.root", corpus, "--steps", "100000", "--device", "cpu"]
    running = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path/"run"/"metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5) and time.monotonic() < deadline: time.sleep(.05)
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    last = err.splitlines()[-1]
    assert running.returncode == status and last.startswith(f"avmae: stopped by {number.name} after step ") and "Traceback" not in err
    steps = int(last.split("after step ")[1].split()[0])
    assert [p.name for p in (tmp_path/"run"/"checkpoint").iterdir()] == [f"step-{steps:08d}"] and log.read_text().count("\n") == steps

def test_a_full_disk_ends_the_run_in_one_sentence(corpus, tmp_path):
    # the limit on file sizes stands for the disk: weights of 460 kB do not fit, the log does
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2);"
            "from avmae.cli import main; sys.exit(main(sys.argv[1:]))")
    command = [sys.executable, "-c", code, "pretrain", "smoke_pretrain", "--run", "run", "--corpus.root", corpus, "--device", "cpu"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "cannot save step 8 in run/checkpoint" in said and "Make room and run the same command again" in said
    assert "Traceback" not in done.stderr and not list((tmp_path/"run"/"checkpoint").iterdir())
