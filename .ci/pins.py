"""Write constraints.txt and environment.yml from the environment that this runs in: python .ci/pins.py"""
import re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# torch pins its own CUDA libraries, which differ from platform to platform; pip and wheel are the tools that install.
LEAVE_OUT = re.compile(r"(nvidia-|cuda-|triton|pip=|wheel=)", re.I)
HEADER = """# The exact versions that the committed results were made with; `make` installs with them. CUDA libraries are pinned by torch.
# Written by .ci/pins.py, like environment.yml.
"""
ENVIRONMENT = """# The same environment for conda: conda env create -f environment.yml && conda activate avmae && pip install --no-deps -e .
# Written by .ci/pins.py, like constraints.txt.
name: avmae
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
"""

def pins() -> list[str]:
    "The installed packages as name==version, sorted."
    freeze = subprocess.run([sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"], check=True, capture_output=True, text=True)
    return sorted((line for line in freeze.stdout.split() if "==" in line and not LEAVE_OUT.match(line)), key=str.lower)

if __name__ == "__main__":
    found = pins()
    (ROOT/"constraints.txt").write_text(HEADER + "".join(f"{pin}\n" for pin in found))
    (ROOT/"environment.yml").write_text(ENVIRONMENT + "".join(f"    - {pin}\n" for pin in found))
