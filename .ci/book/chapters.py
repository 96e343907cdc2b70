"""The notebooks as the chapters of a book, in reading order: nbs/index.ipynb lists them, and the site is built in this order."""
import json, re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# A folder of nbs/: its title and what it explains. "." are the notebooks beside index.ipynb.
WINGS = {
    "data": ("Data", "media files and official lists become clips and batches; the miniature corpora; what broken files do"),
    "model": ("Model", "from pixels and samples to tokens, masks, four encoders, three decoders, the autoencoder, the classifier"),
    "train": ("Training", "recipes, optimisers and schedules, checkpoints, the loop, metrics, many processes"),
    "paper": ("Paper", "run records, tables, figures, claims; one notebook per table or figure"),
    "experiments": ("Experiments", "the papermill notebooks; by default each runs in seconds"),
    "benchmarks": ("Benchmarks", "how fast clips are read and steps are taken, beside other libraries"),
    ".": ("Own videos", "trained models on your own files, saving and sharing them; the authors' weights, and how closely all this agrees with their code")}
# Notebooks without a number in their name, in their folders; what stands neither here nor has a number follows by name.
UNNUMBERED = ("pretrain", "finetune", "evaluate", "hub", "videos", "own_corpus", "frozen", "probes", "troubleshooting", "images", "card", "cli", "options", "flax", "scenic", "fidelity")

class Chapter(NamedTuple):
    "One notebook: its path in nbs/, its title and subtitle, and the module that it exports, if any."
    path: str
    title: str
    subtitle: str
    module: str | None

def read(path: Path) -> Chapter:
    "The chapter that a notebook is; ValueError if it does not start with `# title` and `> subtitle`."
    name, cells = path.relative_to(ROOT/"nbs").as_posix(), json.loads(path.read_text(encoding="utf-8"))["cells"]
    opening = re.match(r"# (.+)\n+> (.+)", "".join(cells[0]["source"])) if cells else None
    if not opening: raise ValueError(f"nbs/{name} does not start with a line '# title' and a line '> subtitle'.")
    exports = re.search(r"^#\| default_exp (\S+)", "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), re.M)
    return Chapter(name, opening[1], opening[2], f"avmae.{exports[1]}" if exports else None)

def place(path: Path) -> tuple:
    "What sorts the notebooks of a folder."
    return (UNNUMBERED.index(path.stem) if path.stem in UNNUMBERED else len(UNNUMBERED), path.name)

def chapters() -> dict[str, list[Chapter]]:
    "Every notebook but the index, by wing, in reading order; a folder that WINGS does not know comes last, under its own name."
    shown = lambda path: not any(part.startswith((".", "_")) for part in path.relative_to(ROOT/"nbs").parts)
    results = [path for path in (ROOT/"nbs").rglob("*.ipynb") if shown(path) and not {"runs", "corpora"} & set(path.relative_to(ROOT/"nbs").parts)]
    found = {wing: [] for wing in WINGS}
    for path in sorted(results, key=place):
        if path != ROOT/"nbs"/"index.ipynb": found.setdefault(path.parent.relative_to(ROOT/"nbs").as_posix(), []).append(read(path))
    return {wing: listed for wing, listed in found.items() if listed}

def table() -> str:
    "The list of chapters as markdown, with links that start at nbs/."
    def row(wing: str, listed: list[Chapter]) -> str:
        title, explained = WINGS.get(wing, (wing, ""))
        name = f"**{title}**" if wing == "." else f"**[{title}]({wing})**"
        return f"| {name}: {explained} | {' · '.join(f'[{chapter.title}]({chapter.path})' for chapter in listed)} |"
    return "\n".join(["| wing | chapters, in reading order |", "|---|---|", *(row(wing, listed) for wing, listed in chapters().items())])
