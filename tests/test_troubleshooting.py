"""What nbs/troubleshooting.ipynb answers: every question is there, with tests, chapters, commands and names that exist; and the answers that no other test keeps.

Its cells are executed by nbdev_test, like those of all notebooks."""
import ast, functools, importlib, inspect, json, math, re, shlex, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from avmae import cli
from avmae.card import CARD
from avmae.model.classifier import AVClassifier, AVClassifierConfig
from avmae.model.frontend import Frontend, FrontendConfig
from avmae.model.tokens import patchify, position_table
from avmae.options import corpus_of, pairs, recipe_named
from avmae.train import engine
from avmae.train.budget import made_up
from avmae.train.config import override, recipe_from_dict
from avmae.train.device import DeviceFull, memory_options
from avmae.train.evaluate import evaluate, logits_of, predict, scores
from avmae.train.feed import open_manifest, write_smoke_corpus
from avmae.train.feed import test_data as clips_to_test
from avmae.train.recipes import RECIPES, get_recipe
from avmae.train.record import dotted
from avmae.train.state import begin
from avmae.train.weights import load_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT/"nbs"/"troubleshooting.ipynb"
USERS = ROOT.parent/"shared"/"USERS.md"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
WORDS = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
FENCE = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
ANSWERS = {int(re.search(r"^> No\. (\d+)\.", text, re.M)[1]): text for text in WORDS if text.startswith("### ")}
SPANS = re.findall(r"`([^`\n]+)`", "\n".join(FENCE.sub("", text) for text in WORDS))


# ---- the page

def test_every_question_is_answered_once_with_a_test_or_a_reason():
    asked = [text for text in WORDS if text.startswith("### ")]
    assert len(asked) == len(ANSWERS) and sorted(ANSWERS) == list(range(1, 31))
    bare = [number for number, text in ANSWERS.items() if not re.search(r"Kept true by `tests/\w+\.py::\w+`", text) and "**Not here:**" not in text]
    assert not bare, f"answers without a test or a reason: {bare}"

@pytest.mark.skipif(not USERS.exists(), reason="the list of questions is not here")
def test_the_numbers_are_those_of_the_list():
    text = USERS.read_text(encoding="utf-8")
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)]
    following = re.search(r"^Next five, for the backlog: (.+)$", text, re.M)[1].split("; ")
    assert sorted(ANSWERS) == [*rows, *range(rows[-1] + 1, rows[-1] + 1 + len(following))]

def slug(heading: str) -> str:
    "The anchor of a heading, as GitHub and the site make it."
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

def test_the_table_of_contents_lists_the_questions_in_their_order():
    contents, = [text for text in WORDS if text.startswith("| topic |")]
    found, topic = [], ""
    for text in WORDS:
        if text.startswith("## "): topic = text[3:].strip()
        if text.startswith("### "): found.append((topic, text.split("\n")[0][4:], int(re.search(r"No\. (\d+)", text)[1])))
    first = lambda k: found[k][0] if not k or found[k][0] != found[k - 1][0] else ""
    assert contents.split("\n")[2:] == [f"| {first(k)} | [{question}](#{slug(question)}) | {number} |" for k, (_, question, number) in enumerate(found)]

def test_every_test_that_is_named_exists():
    named = {tuple(span.split("::")) for span in SPANS if "::" in span}
    there = {(f"tests/{path.name}", node.name) for path in (ROOT/"tests").glob("test_*.py")
             for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert len(named) > 60 and named <= there, f"no such tests: {sorted(named - there)}"

def test_every_link_leads_somewhere():
    links = re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", "\n".join(WORDS))
    anchors = {slug(line.lstrip("# ")) for text in WORDS for line in text.split("\n")[:1] if line.startswith("#")}
    lost = [link for link in links if (link[1:] not in anchors if link.startswith("#") else not (PAGE.parent/link.partition("#")[0]).is_file())]
    assert links and not lost, f"links to nothing: {lost}"
    for number, text in ANSWERS.items(): assert re.search(r"^> No\. \d+\. More in \[[^]]+\]\(\S+\.ipynb\)", text, re.M), f"no. {number} names no chapter"

COMMANDS = [line for text in WORDS for block in FENCE.findall(text) for line in block.strip().split("\n")] + [span for span in SPANS if span.startswith("avmae ") and span.count(" ") > 1]

@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line, monkeypatch):
    words = shlex.split(line)
    if "avmae.cli" in words: words = ["avmae", *words[words.index("avmae.cli") + 1:]]   # behind torchrun
    if words[0] != "avmae":
        assert words[:3] == ["pip", "install", "-c"] and (ROOT/words[3]).is_file()
        return
    command, found = cli.COMMANDS[words[1]], {}
    @functools.wraps(command)
    def note(*given, **named): found.update(inspect.signature(command).bind(*given, **named).arguments)
    monkeypatch.setitem(cli.COMMANDS, words[1], note)
    cli._parse(words[1:])
    if words[1] == "prepare": corpus_of(found["root"], pairs(found.get("set", ())))
    if "recipe" in found: assert recipe_named(found["recipe"], pairs(found.get("set", ()))).kind == words[1] or words[1] == "statistics"

def test_every_name_in_the_text_exists():
    values = [dotted(function().to_dict()) for function in RECIPES.values()]
    paths, tables = {path for each in values for path in each}, {path.split(".")[0] for each in values for path in each if "." in path}
    options = {option for name in cli.COMMANDS for option in cli._own_options(name)} | {f"--{path}" for path in paths}
    makefile = (ROOT/"Makefile").read_text(encoding="utf-8")
    for span in SPANS:
        if re.fullmatch(r"avmae(\.\w+)+", span):
            module, _, name = span.rpartition(".")
            assert hasattr(importlib.import_module(module), name), f"there is no {span}"
        elif re.fullmatch(r"(\w+)\.\w+", span) and span.split(".")[0] in tables and not span.endswith(".safetensors"): assert span in paths, f"no recipe has {span}"
        elif span.startswith("--"): assert span.split()[0] in options, f"no command takes {span}"
        elif span.startswith("avmae "): assert span.split()[1] in cli.COMMANDS, span
        elif span.startswith("make "): assert re.search(rf"^(\w+ )*{span.split()[1]}( \w+)*:", makefile, re.M), f"the Makefile has no {span}"
        elif re.fullmatch(r"[\w./]+/[\w.]+\.(csv|ini|txt|yml)|[\w]+\.(ini|txt|yml)", span): assert (ROOT/span).is_file(), f"there is no file {span}"


# ---- answers that no other test keeps

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("corpora")/"vggsound"
    write_smoke_corpus(root)
    return str(root)

def run(made, folder: Path) -> dict: return engine.fit(made, folder, device="cpu", progress=False)

def test_what_two_copies_of_a_corpus_share_is_a_corpus(corpus, tmp_path):
    recipe = get_recipe("smoke_pretrain", **{"corpus.root": corpus, "steps": 1})
    whole = open_manifest(recipe.corpus)
    shared = whole.take(np.arange(len(whole)) % 2 == 0)
    shared.save(tmp_path/"both.parquet")
    record = run(override(recipe, {"corpus.format": "manifest", "corpus.csv": str(tmp_path/"both.parquet")}), tmp_path/"run")
    assert record["manifest"]["hash"] == shared.hash != whole.hash
    assert record["manifest"]["trained_on"] == 8 and record["manifest"]["coverage"] == {"test": [6, 6], "train": [8, 8]}

def test_a_run_that_waits_for_clips_says_so_once_and_names_enough_workers(corpus, tmp_path, monkeypatch):
    recipe, clock = get_recipe("smoke_pretrain", **{"corpus.root": corpus}), iter(range(0, 10_000, 10))
    advise = lambda seconds, waited, **changes: engine.reading_advice(SimpleNamespace(recipe=override(recipe, changes), seconds=seconds, waited=waited))
    assert advise(59., 50.) is None and advise(100., 20.) is None
    assert advise(100., 75., workers=3).startswith("75% of the time went into reading clips: raise workers from 3 to about 12, given the cores")
    assert "avmae prepare" not in advise(100., 80., **{"corpus.format": "manifest"}) and "(cache)" in advise(100., 80., cache=False)
    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))   # ten seconds pass with every look at the clock
    monkeypatch.setattr(engine, "timed", lambda work: ((item, 12.) for item in work))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(recipe, tmp_path/"run")
    assert [str(x.message).split(", or")[0] for x in said if "reading" in str(x.message)] == ["45% of the time went into reading clips: raise workers from 0 to about 2, given the cores"]

def test_spectrogram_is_its_formula():
    c = FrontendConfig(mels=64, mean=-3., std=2.)
    sound = .1 * torch.randn(3_200, generator=torch.Generator().manual_seed(0))
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)
    edges = 700 * (10 ** (np.linspace(mel(c.low_hz), mel(c.high_hz), c.mels + 2) / 2595) - 1)
    bins = np.arange(c.fft // 2 + 1)[:, None] * c.sample_rate / c.fft
    bank = np.clip(np.minimum((bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]), 0, None)
    padded, window = np.pad(sound.double().numpy(), (c.fft - c.hop) // 2, mode="reflect"), np.zeros(c.fft)
    window[(c.fft - c.window) // 2:][:c.window] = .54 - .46 * np.cos(2 * np.pi * np.arange(c.window) / c.window)
    power = np.abs(np.fft.rfft([padded[k * c.hop:][:c.fft] * window for k in range(len(sound) // c.hop)])) ** 2
    assert np.abs(Frontend(c).audio(sound[None])[0].numpy() - (np.log(power @ bank + c.log_offset) - c.mean) / c.std).max() < 1e-3

def test_two_layers_of_timm_and_no_media_reader_but_pyav():
    taken, called = set(), set()
    for path in (ROOT/"avmae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level: taken |= {(node.module.split(".")[0], alias.name) for alias in node.names}
            if isinstance(node, ast.Import): taken |= {(alias.name.split(".")[0], "") for alias in node.names}
            if isinstance(node, ast.Attribute): called.add(ast.unparse(node))
    assert {name for package, name in taken if package == "timm"} == {"Mlp", "Attention"}
    assert ("av", "") in taken and not {package for package, _ in taken} & {"torchcodec", "decord", "cv2", "librosa", "soundfile"}
    assert not called & {f"torchaudio.{name}" for name in ("load", "info", "save", "list_audio_backends", "backend")} and "torchvision.io" not in called

def test_more_time_keeps_the_positions_and_another_size_does_not():
    device, place = torch.device("cpu"), lambda video, t, h, w: int((patchify(video, (2, 16, 16))[0, :, 0] == 100 * t + 10 * h + w).nonzero())
    def numbered(frames, side):   # every patch holds the digits of its place
        t, h, w = torch.meshgrid(torch.arange(frames) // 2, torch.arange(side) // 16, torch.arange(side) // 16, indexing="ij")
        return (100 * t + 10 * h + w)[None, :, None].expand(1, frames, 3, side, side)
    short, long, wide = numbered(8, 64), numbered(16, 64), numbered(8, 80)
    assert place(short, 1, 2, 3) == place(long, 1, 2, 3) == 27 and place(wide, 1, 2, 3) == 38
    assert position_table(128, 32, device)[:64].equal(position_table(64, 32, device))

def kept(recipe) -> int:
    "Bytes that the forward pass of one part of a batch keeps for the backward pass."
    t, found = begin(recipe, None, 16), {}
    weights = {p.untyped_storage().data_ptr() for p in t.task.model.parameters()}
    part, drawn = engine.prepare(t, made_up(recipe, recipe.batch_size), 0, None)[0].rows(engine.split(recipe.batch_size, recipe.accumulate)[0])
    def keep(x):
        if (storage := x.untyped_storage()).data_ptr() not in weights: found[storage.data_ptr()] = storage.nbytes()
        return x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x): losses = t.run(t.task.frontend(part.inputs), part, drawn)
    assert losses
    return sum(found.values())

def test_a_full_accelerator_names_options_that_exist_and_help(corpus, tmp_path, monkeypatch):
    recipe, original = get_recipe("smoke_pretrain", **{"corpus.root": corpus, "checkpoint_every": 1}), engine.train_step
    assert memory_options(recipe) == (["--recompute true", "--shard true --processes N"], ["--accumulate 2", "--model.decode_ratio 0.5 (no longer the paper's objective)"])
    for change in ({"recompute": True}, {"accumulate": 2}, {"model.decode_ratio": .5}): assert kept(override(recipe, change)) < kept(recipe), change
    def full(t, *rest):
        if t.step == 3: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(t, *rest)
    with monkeypatch.context() as patch, pytest.raises(DeviceFull, match="4 samples per step in 1 part: add --recompute true or --shard true --processes N, with which this run goes on, or begin anew") as error:
        patch.setattr(engine, "train_step", full)
        run(recipe, tmp_path/"run")
    assert cli._is_ours(error.value), "the command line must show this as a sentence"
    resumed = run(override(recipe, {"recompute": True}), tmp_path/"run")
    assert resumed["steps"] == 8 and resumed["result"]["loss"] == pytest.approx(run(recipe, tmp_path/"straight")["result"]["loss"], rel=1e-4)

def test_the_lines_of_knowing_nothing(corpus):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3 + 5
    errors = [(x - constant).square().mean().item() for constant in (x.mean() - .1, x.mean(), x.mean() + .1)]
    assert errors[1] == min(errors) == pytest.approx(x.var(correction=0).item(), rel=1e-6)
    recipe = get_recipe("smoke_finetune", **{"corpus.root": corpus})
    t = begin(recipe, None, 16)
    work = engine.prepare(t, made_up(recipe, 4), 0, None)[0]
    assert engine.accumulate(t, work, work.counts)["loss"].item() == pytest.approx(math.log(12), rel=1e-5)

def test_a_run_is_scored_again_from_its_folder(corpus, tmp_path):
    run(get_recipe("smoke_finetune", **{"corpus.root": corpus, "steps": 3}), tmp_path/"run")
    record = evaluate(tmp_path/"run", device="cpu", progress=False)
    recipe = recipe_from_dict(record["config"], "finetune")
    data = clips_to_test(recipe, open_manifest(recipe.corpus), progress=False)
    _, logits, labels = predict(load_model(tmp_path/"run")[0], data, recipe, progress=False)
    again = scores(logits, labels, recipe.loss)
    assert again == {key: record["result"][key] for key in again}

def test_an_absent_modality_has_no_say_in_the_score():
    torch.manual_seed(0)
    model = AVClassifier(AVClassifierConfig(size="nano", num_classes=5, fusion_layer=0)).eval()
    for parameter in model.parameters(): torch.nn.init.normal_(parameter, std=.2)
    inputs, here = {"video": torch.zeros(2, 4, 3, 32, 32), "audio": torch.randn(2, 32, 128)}, torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        alone = logits_of(model, inputs, {"video": ~here, "audio": here})
        assert torch.allclose(alone, model.head(model.encode(inputs)["audio"].mean(1))) and not torch.allclose(alone, logits_of(model, inputs, {"video": here, "audio": here}), atol=1e-3)
        louder = logits_of(model, inputs | {"video": torch.ones(2, 4, 3, 32, 32)}, {"video": ~here, "audio": here})
    assert not torch.allclose(louder, alone, atol=1e-4), "the sound attends to what stands in for pictures, as the page says"

def test_licence_is_one():
    assert re.match(r"\s*Apache License\s+Version 2\.0, January 2004", (ROOT/"LICENSE").read_text(encoding="utf-8"))
    assert 'license="Apache-2.0"' in (ROOT/"setup.py").read_text(encoding="utf-8") and re.search(r"^license = apache2$", (ROOT/"settings.ini").read_text(encoding="utf-8"), re.M)
    assert "The weights: {license}. The clips that they were trained on are not included and have licences of their own." in CARD
    assert not (ROOT/"NOTICE").exists(), "the page says that there is none"
