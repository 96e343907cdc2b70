# Everything starts here, on a machine that has Python 3.11 or newer, git and make, and nothing else:
#   make reproduce   the main job: corpus, pretraining, finetuning, table, figure (SCALE=mini by default; done work is kept)
#   make paper       every table and figure of the paper (SCALE=smoke, mini, gpu or paper; SEEDS=1 for a first look; DRY=1 only lists the jobs)
#   make demo        a small classifier for `avmae predict`, a minute or two after the installation
#   make test        everything that proves the project
#   make readme      README.md from nbs/index.ipynb            make notebooks   re-execute the stored notebooks
#   make lab         JupyterLab on the notebooks               make docs        the notebooks as a site, in _site/html
#   make clean       forget the results of SCALE (not .venv)
SCALE ?= mini
SEEDS ?=
DRY ?=
PROFILE ?=
GPUS ?= 1
CORES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LIMIT = $(shell command -v timeout >/dev/null 2>&1 && echo timeout -k 10)
.DEFAULT_GOAL := help
.PHONY: help reproduce paper demo test readme notebooks docs lab clean
.DELETE_ON_ERROR:

# One thread per process: `make` runs as many processes as there are cores, and sums keep the same order everywhere.
export OMP_NUM_THREADS ?= 1
export PYTHONPATH :=
export JUPYTER_PLATFORM_DIRS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:
	@sed -n '2,8s/^# *//p' Makefile

# .venv/.installing stands while an installation is under way; where it is found again, that one was cut off and nothing
# in the folder can be trusted. An environment made by hand carries no mark and is only added to.
$(INSTALLED): settings.ini setup.py pyproject.toml constraints.txt
	@if [ -e $(VENV)/.installing ]; then echo "The last installation was cut off; starting it anew."; rm -rf $(VENV); fi
	@if [ ! -x $(BIN)/python ]; then \
	    python=`for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	        if $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done`; \
	    if [ -z "$$python" ]; then echo "No Python 3.11 or newer with its venv module was found: install one" \
	        "(Debian, Ubuntu: apt install python3-venv) or name it, as in \`make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3\`." >&2; exit 1; fi; \
	    mkdir -p $(VENV) && touch $(VENV)/.installing && "$$python" -m venv $(VENV); fi
	@touch $(VENV)/.installing
	@echo "Installing avmae and what it needs into $(VENV) (once; minutes, depending on the network) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@rm $(VENV)/.installing && touch $@

# --nolock: the Snakefile has a lock of its own, which a killed process cannot leave behind. A job is done again when an
# input is newer or its parameters or its notebook's code changed (Snakefile), not when the text around them did.
SNAKEMAKE = $(BIN)/snakemake --cores $(CORES) --resources gpu=$(GPUS) --config scale=$(SCALE) $(if $(SEEDS),seeds=$(SEEDS)) goal=$@ --nolock --rerun-incomplete \
    --keep-incomplete --rerun-triggers mtime params --scheduler greedy --quiet host progress $(if $(PROFILE),--profile $(PROFILE)) $(if $(DRY),--dry-run)

# What Snakemake would do, one job to a line, with the first reason that it gives
LISTED = awk '/^rule /{name = substr($$2, 1, length($$2) - 1)} /^    reason:/ && name != "all" {sub(/^ *reason: /, ""); sub(/[,;].*/, ""); printf "%-45s %s\n", name, $$0; jobs++} \
    END {print jobs + 0 " jobs; each with its files: runs/$(SCALE)/dry-run.log"}' runs/$(SCALE)/dry-run.log; exit 0;

reproduce paper: $(INSTALLED)
	@mkdir -p runs/$(SCALE)
	@$(SNAKEMAKE) $(if $(DRY),>runs/$(SCALE)/dry-run.log) 2>runs/$(SCALE)/snakemake.log || { tail -n 4 runs/$(SCALE)/snakemake.log | grep -vE '^(Elapsed time|WorkflowError|At least one job|--keep-incomplete)' >&2; \
	    echo "Not finished: put right what is said above and run it again; what is done is kept." >&2; exit 1; }
	@$(if $(DRY),$(LISTED)) [ $(SCALE) != mini ] || $(MAKE) --no-print-directory -s README.md
	@$(if $(DRY),exit 0;) echo "The results are in paper_figures/$(SCALE), the runs that they come from in runs/$(SCALE)."

demo: $(INSTALLED)
	@$(BIN)/avmae mini corpora/demo --train 480 --test 120
	@OMP_NUM_THREADS=$(CORES) $(BIN)/avmae finetune mini_vggsound_finetune --run runs/demo --corpus.root corpora/demo --corpus.labels-per-class none --epochs 12
	@echo "Now try it on a video of your own, or on the first clip here (its classes are those of the miniature):"
	@echo "  $(BIN)/avmae predict $$(ls corpora/demo/clips/*.mp4 | head -n 1)"

README.md: nbs/index.ipynb paper_figures/mini/reproduce.csv paper_figures/mini/runs.csv | $(INSTALLED)
	@$(BIN)/python .ci/execute.py nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

test: $(INSTALLED)
	@echo "Notebooks: every cell of nbs/ is executed as a test ..."
	@$(LIMIT) $(if $(LIMIT),1800) $(BIN)/nbdev_test --timing
	@$(LIMIT) $(if $(LIMIT),1800) $(BIN)/python -m pytest
	@echo "The whole paper at the scale smoke ..."
	@$(LIMIT) $(if $(LIMIT),1800) $(MAKE) --no-print-directory -s paper SCALE=smoke

readme: $(INSTALLED)
	@$(BIN)/python .ci/execute.py nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

notebooks: $(INSTALLED)
	@$(BIN)/python .ci/execute.py
	@$(BIN)/python .ci/readme.py

docs: $(INSTALLED)
	@$(BIN)/python .ci/book/build.py

lab: $(INSTALLED)
	@$(BIN)/jupyter lab --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/nbs/index.ipynb

clean:
	rm -rf runs/$(SCALE) .snakemake .pytest_cache build dist *.egg-info
