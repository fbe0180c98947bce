# Everything happens in a virtual environment of its own: VENV, made with PYTHON when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Processes that share the benchmark.
WORKERS ?= 2
# What plays the pointing game in the demo.
DEMO_METHODS := gradient grad_cam
# What the demo asks of the transformer: methods that take it a few seconds.
VIT_METHODS := gradient guided_backprop grad_cam layer_cam hires_cam attention_rollout transformer_attribution legrad

.DEFAULT_GOAL := help
.PHONY: help demo install test test-all docs lint format bench benchmark sweep clean
.DELETE_ON_ERROR:

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-benchmark ## explain the embedded scenes with every method, then play the pointing game
	@echo "Two generated scenes by every method; one by a vision transformer; the pointing game: is a map's maximum on the object?"
	@$(BIN)/saliency explain --method all --scenes 2 --html --out demo --option num_samples=3 \
		--option num_masks=300 --option max_iter=40 --option n_steps=16 --option n_samples=12
	@$(BIN)/saliency explain --arch scenes_vit --scenes 1 $(VIT_METHODS:%=--method %) --out demo/vit
	@$(BIN)/saliency benchmark --dataset scenes --method centre $(DEMO_METHODS:%=--method %)

install: $(VENV)/.installed-plot ## install the package, editable, and its command `saliency`

test: $(VENV)/.installed-test ## run the tests
	$(BIN)/python -m pytest -n auto -m "not parity and not sweep"

test-all: $(VENV)/.installed-test $(VENV)/.installed-parity ## run the tests, and those against other libraries
	$(BIN)/python -m pytest -n auto

docs: $(VENV)/.installed-docs ## build the documentation, without the net, in docs/_build/html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "Documentation: $(CURDIR)/docs/_build/html/index.html"

lint: $(VENV)/.installed-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## write the code in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-benchmark ## measure speed
	$(BIN)/python -m benchmarks.speed

benchmark: $(VENV)/.installed-benchmark ## score every method by every metric on the embedded scenes, and write the reports
	@set -e; for run in 'scenes 20' 'scenes_vit 6'; do set -- $$run; \
		$(BIN)/torchrun --standalone --nproc-per-node=$(WORKERS) -m saliency benchmark --dataset scenes --arch $$1 \
			--method centre --method all --metric all --limit $$2 --batch-size 2 --out bench_out/$$1 \
			--option rise.num_masks=100 --option extremal_perturbation.max_iter=10 \
			--option n_steps=8 --option n_samples=8 \
			--metric-option cascading_randomisation.steps=3 --metric-option independent_randomisation.steps=3; \
		$(BIN)/saliency report bench_out/$$1; \
		echo "Report: $(CURDIR)/bench_out/$$1/report.html"; \
	done

sweep: $(VENV)/.installed-test ## explain every classifier of torchvision, in all sizes, by every method; resumes where it stopped
	@mkdir -p bench_out
	$(BIN)/python -m benchmarks.zoo --library torchvision --every-size --method all --method attention \
		--method feature_permutation --out bench_out/architectures.jsonl --document bench_out/architectures.md
	@echo "Page: $(CURDIR)/bench_out/architectures.md"

clean: ## remove the environment, caches, the demo's pictures and the documentation
	rm -rf docs/_build docs/_examples docs/_pictures docs/api docs/gallery docs/sg_execution_times.rst
	rm -rf .venv demo bench_out saliency_out build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# One stamp for each extra: it is installed once, and again when the requirements change.
$(VENV)/.installed-%: setup.py pyproject.toml
	@echo "Installing saliency-torch[$*] in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
