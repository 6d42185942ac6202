# Every target sets up .venv by itself when it is missing or older than pyproject.toml, with the newest versions that
# this allows; CONSTRAINTS=constraints.txt takes those that are known to work together.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs bench bench-peer bench-scaling readme study lessons clean

VENV   := .venv
PYTHON := $(or $(PYTHON),$(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done))
BIN    := $(VENV)/bin
DEMO   := outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)
TRAIN  := $(BIN)/wganlab train -m loss=gan,wgan_clip,wgan_gp dataset=digits steps=2000 callbacks.evaluation.every=200 callbacks.samples.every=200 hydra.sweep.dir=$(DEMO)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(VENV)/.run  ## train GAN, clipped WGAN and WGAN-GP on real handwriting and compare them on one page
	@echo '$$ $(TRAIN)'
	@echo '$$ $(BIN)/wganlab report $(DEMO) --watch'
	@$(BIN)/wganlab report $(DEMO) --watch & watcher=$$!; $(TRAIN) || { kill $$watcher; exit 1; }; wait $$watcher
	@echo "open it in a browser: file://$(CURDIR)/$(DEMO)/index.html"
	@echo "then try your own: $(BIN)/wganlab train -m loss=wgan_gp loss.n_critic=1,5 dataset=digits steps=1000"

# one worker more than two cores, for tests that wait for processes of their own
test: $(VENV)/.dev  ## run the test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.dev  ## all tests, slow ones included (an hour or two)
	@$(MAKE) --no-print-directory test ARGS="-m 'slow or not slow' $(ARGS)"

lint: $(VENV)/.dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.run  ## time wganlab beside a textbook loop and a bare one (ARGS='--workloads toy' and the like)
	@$(BIN)/python -m benchmarks.bench $(ARGS)

bench-peer: $(VENV)/.run  ## time wganlab beside PyTorch-GAN's own scripts (ARGS='--peer ITS_CHECKOUT --data FOLDER_OF_MNIST')
	@$(BIN)/python -m benchmarks.peer $(ARGS)

bench-scaling: $(VENV)/.dev  ## speed and memory against batch, image and data set size, and parallel jobs
	@$(BIN)/python -m benchmarks.scaling

NEWEST = $(lastword $(sort $(wildcard outputs/demo/*)))
readme: $(VENV)/.run  ## put table and figures of the newest demo into experiments/demo and README.md
	@$(BIN)/wganlab report $(NEWEST) --publish experiments/demo/README.md README.md

study: $(VENV)/.run  ## run a study, put what its README shows into its folder (NAME=mode_collapse ARGS='key=value ...')
	@$(BIN)/wganlab study $(NAME) $(ARGS) && $(BIN)/wganlab study --publish $(NAME) $(ARGS)

docs: $(VENV)/.docs  ## build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open it in a browser: file://$(CURDIR)/site/index.html"

lessons: $(VENV)/.lessons  ## run the six lessons, as pages in outputs/lessons; open lessons/*.ipynb to take them
	@$(BIN)/jupyter nbconvert --log-level ERROR --to html --execute --output-dir outputs/lessons $(or $(LESSON),lessons/*.ipynb)
	@ls outputs/lessons/*.html | sed 's|^|open it in a browser: file://$(CURDIR)/|'

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist site

$(VENV)/.run: pyproject.toml
	$(call install,.)

$(VENV)/.dev: pyproject.toml
	$(call install,.[dev])
	@touch $(VENV)/.run

$(VENV)/.docs: pyproject.toml
	$(call install,.[docs])

$(VENV)/.lessons: pyproject.toml
	$(call install,.[lessons])

define install
	@test -n "$(PYTHON)" || { echo "wganlab needs Python 3.11 to 3.13; name one with make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON): torch and its companions, several GB the first time"
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed: install your system's package python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS)) --editable '$(1)'
	@touch $@
endef
