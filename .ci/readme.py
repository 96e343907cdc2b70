"""README.md from nbs/index.ipynb without Quarto: hidden cells and directive lines go, links are made to start at the top level.

python .ci/readme.py [--to FILE]"""
import argparse, json, posixpath, re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)")

def relink(text: str) -> str:
    "Links of the notebook start at nbs/, those of the README at the top level."
    return LINK.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), text)

def shown(output: dict) -> str:
    "One stored output as markdown."
    data = output.get("data", {})
    if "text/markdown" in data: return relink("".join(data["text/markdown"]))
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip("\n")
    return "\n".join(f"    {line}" for line in text.split("\n"))

def cell_markdown(cell: dict) -> str:
    "A cell as markdown: text as it is, code fenced and followed by its outputs."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return relink(source)
    directives = "".join(DIRECTIVE.findall(source))
    if "hide" in directives.replace("\n", " ").replace("|", " ").split(): return ""
    code = DIRECTIVE.sub("", source).strip()
    fence = "" if "echo: false" in directives else f"```python\n{code}\n```"
    return "\n\n".join(part for part in [fence, *map(shown, cell["outputs"])] if part)

def readme() -> str:
    "The whole README."
    cells = json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]
    note = "<!-- Written by `make readme` from nbs/index.ipynb: edit that notebook. -->"
    return "\n\n".join(part for part in [note, *map(cell_markdown, cells)] if part) + "\n"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT/"README.md")
    parser.parse_args().to.write_text(readme(), encoding="utf-8")
