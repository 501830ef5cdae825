# `make device` and `make test` set up what they need; everything lies in .venv and runs/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/pocket.toml
BUNDLE ?= runs/$(basename $(notdir $(RECIPE)))/device
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup peers device test lint format bench bench-export bench-collect chat base clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) ## Make .venv with everything (the first time builds llama.cpp: 5 to 10 minutes).

# The whole of it is one stamp: an interrupted setup leaves none, and is done again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $${CXX:-c++} >/dev/null || { echo "setup: no C++ compiler found; install g++ or clang++ (Debian: apt install g++; macOS: xcode-select --install)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	CFLAGS="$$CFLAGS $(NO_AMX)" CXXFLAGS="$$CXXFLAGS $(NO_AMX)" \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	CFLAGS="$$CFLAGS $(NO_AMX)" CXXFLAGS="$$CXXFLAGS $(NO_AMX)" \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[workshop,dev]'
	@touch $(STAMP)

# llama.cpp's AMX kernels crash on the first decode of small quantized models; without them it is as fast.
NO_AMX := $(shell grep -qs amx_tile /proc/cpuinfo && echo '-mno-amx-tile -mno-amx-int8 -mno-amx-bf16')

# Beside what some tests and benchmarks hold our files to: llama.cpp's own converter, and transformers.js.
PEERS := .peers
TRANSFORMERS_JS := @huggingface/transformers@4.3.1

peers: $(PEERS)/.fetched ## Fetch llama.cpp's converter and transformers.js, to compare with; tests skip without.

$(PEERS)/.fetched: $(STAMP) constraints.txt
	@mkdir -p $(PEERS)/sdist $(PEERS)/llama.cpp
	CFLAGS="$$CFLAGS $(NO_AMX)" CXXFLAGS="$$CXXFLAGS $(NO_AMX)" $(BIN)/python -m pip download --quiet --no-deps \
		--no-binary llama-cpp-python --constraint constraints.txt --dest $(PEERS)/sdist llama-cpp-python
	tar -xzf $(PEERS)/sdist/llama_cpp_python-*.tar.gz -C $(PEERS)/llama.cpp --strip-components=3 \
		--wildcards '*/vendor/llama.cpp/convert_*.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
	@rm -r $(PEERS)/sdist
	@if command -v npm >/dev/null; then \
		ONNXRUNTIME_NODE_INSTALL=skip npm install --silent --no-audit --no-fund --prefix $(PEERS) $(TRANSFORMERS_JS); \
	else echo "peers: no npm here, so transformers.js is left out" >&2; fi
	@touch $@

device: setup ## Distil, export, verify and bundle: runs/pocket/device and runs/pocket/report.html.
	$(BIN)/pocketstill run $(RECIPE) $(if $(DATA),--data $(DATA))

test: setup ## Run the tests.
	$(BIN)/python -m pytest -q

lint: setup ## Check style, types, and that the packages' arrows point one way.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure the runtime beside the engines called directly, on the bundle.
	$(BIN)/python benchmarks/bench_runtime.py $(BUNDLE)

# optimum-onnx and transformers' own exporter want versions of their own, and so environments of their own.
$(PEERS)/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	@touch $@

bench-export: peers $(PEERS)/optimum/.installed $(PEERS)/exporters/.installed ## Measure the export beside its peers.
	$(BIN)/python benchmarks/bench_export.py

bench-collect: setup $(PEERS)/curator/.installed $(PEERS)/distilabel/.installed ## Measure the collection beside its peers.
	$(BIN)/python benchmarks/bench_collect.py

chat: setup ## Talk to the bundle.
	$(BIN)/pocketstill chat $(BUNDLE)

base: setup ## Pretrain the base student anew, in three stages (about 50 minutes on two idle cores).
	$(BIN)/python -m pocketstill_pipeline.pretrain recipes/base.toml runs/base-1
	$(BIN)/python -m pocketstill_pipeline.pretrain recipes/base-2.toml runs/base-2
	$(BIN)/python -m pocketstill_pipeline.pretrain recipes/base-3.toml base

clean: ## Remove every run; what was paid for is in runs/*/collect/ledger.sqlite, so mind it.
	rm -rf runs
