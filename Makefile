PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin

.PHONY: setup demo test test-slow clean

setup: .venv/installed  ## the environment, in .venv

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/installed  ## three baselines on the demo set, scored and tabulated
	cd inference_and_evaluation && for baseline in random majority nearest; do \
	  for format in open mcqa; do \
	    $(BIN)/python inference_baselines.py --baseline $$baseline --inference_mode ICL \
	      --task_format $$format --dataset demo || exit; \
	  done; \
	done
	cd inference_and_evaluation && $(BIN)/python evaluate_EM.py ../results_demo
	cd inference_and_evaluation && $(BIN)/python variance_analysis.py ../results_demo --generate_table

# Test processes at a time.
WORKERS ?= 2

test: .venv/installed-dev  ## style, types and all tests but the slow ones
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: .venv/installed-dev  ## the slow tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache results_demo
