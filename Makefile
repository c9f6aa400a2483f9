# `make demo` and `make test` set everything up in .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
TOOL_TESTS := tests/export tests/models/test_packaged.py tests/report tests/test_real_trackers.py tests/watch \
	tests/generation/test_served_real.py tests/worlds/test_served.py

.PHONY: demo test test-tools quick check lint types crash docs wheel benchmark benchmark-quick clean

demo: $(READY)
	$(BIN)/spintune run recipes/quickstart.yaml

# every test at once, also those that are slow or need the real model: each process collects them once
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=40

# tests of what others made, in its real form: llama.cpp, trackers, uv, Chromium; one that is absent fails. llama.cpp is
# compiled for an hour. SPINTUNE_REQUIRE=all asks for every tool, also those that pip has not: vllm, llama-server, ...
test-tools: export SPINTUNE_REQUIRE ?= chromium,llama_cpp,mlflow,trackio,uv,wandb
test-tools: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group tools
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(TOOL_TESTS)

# what every commit passes: one to three minutes on two cores
quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

check: lint types

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# runs that are killed, failed, cut off from power and damaged at many places (docs/lab/crashes.md): before a release
crash: $(READY)
	PYTHONPATH=tests $(BIN)/python -m crash

# the documentation as a site, into build/site; it fetches nothing, and a broken link fails
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# a wheel with compiled kernels, into dist; CXX=aarch64-linux-gnu-g++ makes one for Arm
wheel: $(READY)
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/python -m hatchling build -t wheel

benchmark: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python benchmarks/everything.py --out benchmark-results

# has anything become slower beside its peers? about ten minutes on two quiet cores; ARGS=--accept keeps the ratios
benchmark-quick: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python benchmarks/everything.py --quick --out benchmark-results/quick $(ARGS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv runs build dist
