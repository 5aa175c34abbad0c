SHELL := bash
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin

.PHONY: setup demo test test-slow chaos clean

setup: .venv/installed  ## the environment, in .venv
	@echo "The environment is ready. Activate it: source .venv/bin/activate"

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing torch, transformers and 90 smaller packages into .venv: about 5 minutes, 2 to 6 GB."
	@$(PYTHON) -m venv .venv
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	  -r requirements.txt | { grep --line-buffered -oE \
	  '(Downloading|Using cached) [^ ]+(whl|gz) \([^)]*\)|^Installing collected packages' || true; }
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/installed  ## three baselines on the demo set, scored, tabulated, and a page to look at
	@cd inference_and_evaluation && for baseline in random majority nearest; do \
	  $(BIN)/python inference_baselines.py --baseline $$baseline --inference_mode ICL \
	    --task_format open mcqa --dataset demo || exit; \
	done
	@echo && cd inference_and_evaluation && $(BIN)/python evaluate_EM.py ../results_demo
	@echo && cd inference_and_evaluation && $(BIN)/python variance_analysis.py ../results_demo --generate_table
	@echo && cd inference_and_evaluation && $(BIN)/python build_report.py ../results_demo
	@echo
	@echo "Done. Look at every problem and response: open results_demo/report.html in a browser."
	@echo "Also in results_demo/: result_*.json (each run), model_comparison.txt and evaluation_results.txt"
	@echo "(the tables above), latex_table.tex (the paper's table). Next, run a model of your own:"
	@echo "  source .venv/bin/activate && cd inference_and_evaluation"
	@echo "  python inference_hf.py --help"
	@echo "README.md, \"Compare your model with the published ones\", has the five commands."

# Test processes at a time.
WORKERS ?= 2

test: .venv/installed-dev  ## style, types and all tests but the slow ones
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: .venv/installed-dev  ## the slow tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

# make chaos MINUTES=5 CHAOS="--seed 2"; docs/reliability.md explains it.
MINUTES ?= 60

chaos: .venv/installed-dev  ## kills, crashes, faults, full disks and broken files, at random
	@PYTHONPATH=inference_and_evaluation:tests $(BIN)/python -m chaos --minutes $(MINUTES) $(CHAOS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache results_demo
