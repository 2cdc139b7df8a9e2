# C2VL: `make demo` and `make test` set everything up in .venv; the rest is in `make help`.

PYTHON    ?= python3
VENV      ?= .venv
# a path as one word of the shell, and of a rule's head: it may hold spaces and quotes
quoted     = '$(subst ','\'',$(1))'
escaped    = $(subst $() ,\ ,$(1))
BIN       := $(call quoted,$(VENV)/bin)
CORE      := $(call escaped,$(VENV)/.core)
DEV       := $(call escaped,$(VENV)/.dev)
DOCS      := $(call escaped,$(VENV)/.docs)
WORKROOT  ?= work
RUNROOT   ?= runs
DATASET   ?=
BENCHMARK ?=
DATA      ?= $(if $(C2VL_DATA),$(C2VL_DATA)/$(DATASET))
WORK      ?= $(WORKROOT)/$(DATASET)
OUT       ?= $(RUNROOT)/$(DATASET)-$(BENCHMARK)
RECIPE    ?=
SEEDS     ?= 3
JOBS      ?= 2
KILLS     ?= 20
TARGET    ?=
TARGET_DATA ?= $(if $(C2VL_DATA),$(C2VL_DATA)/$(TARGET))
ARGS      ?=
# one clip of each subject and class: many subjects are what helps with subjects never seen
MANY      := --subjects 80 --views 1 --repeats 1
SET       ?=
recipe    := $(if $(RECIPE),--recipe $(call quoted,$(RECIPE))) $(foreach assignment,$(SET),--set $(call quoted,$(assignment)))

.DEFAULT_GOAL := help
.PHONY: help weights demo look prompts reproduce table protocols paper test test-fast coverage lint bench bench-gpu stress docs clean need-dataset need-benchmark need-target

help: ## Say what can be made
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATASET=ntu60|ntu120|pku-mmd-1|pku-mmd-2|utd-mhad|drive-act|msr-action3d|nw-ucla|sysu-3dhoi|synthetic|generic   BENCHMARK=xsub|xview|xset"
	@echo "  DATA=folder of the raw data (default: \$$C2VL_DATA/<dataset>)   RECIPE=paper|modern|small|light|heuristic|c2vl-plus|video-only|demo|debug|file.toml"
	@echo "  SET='training.pretrain.epochs=30 pipeline.frames=8': values of the recipe   ARGS: further options of prompts"

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(call quoted,$(VENV))
	@echo installing into $(call quoted,$(VENV)) '(a few minutes the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch "$@"

$(DEV): $(CORE)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch "$@"

weights: $(CORE) ## Fetch weights of BlazePose and MiniLM into weights/; prints licence and source: [ARGS=pose_landmark_heavy.tflite]
	@$(BIN)/c2vl-pipeline weights $(ARGS)

demo: $(CORE) ## Synthetic videos to an evaluated encoder and a report
	@$(BIN)/c2vl-pipeline synth --out $(call quoted,$(WORKROOT)/demo-raw) $(MANY)
	@$(BIN)/c2vl-pipeline prompts --dataset synthetic --data $(call quoted,$(WORKROOT)/demo-raw) --work $(call quoted,$(WORKROOT)/demo) --recipe demo
	@$(BIN)/c2vl-eval benchmark --data $(call quoted,$(WORKROOT)/demo) --benchmark xsub --out $(call quoted,$(RUNROOT)/demo) --recipe demo --protocol semi $(ARGS)

need-dataset:
	@test -n "$(DATASET)" || { echo "say which dataset, e.g. make prompts DATASET=ntu120 DATA=/data/ntu"; exit 2; }
	@test -n $(call quoted,$(DATA)) || { echo "say where the raw data of $(DATASET) is: DATA=/path/to/folder, or set C2VL_DATA to the folder that holds $(DATASET)/"; exit 2; }

need-benchmark: need-dataset
	@test -n "$(BENCHMARK)" || { echo "say which benchmark, e.g. make reproduce DATASET=$(DATASET) BENCHMARK=xsub"; exit 2; }

need-target:
	@test -z "$(TARGET)" || test -f $(call quoted,$(WORKROOT)/$(TARGET)/packed/packed.json) || test -n $(call quoted,$(TARGET_DATA)) || { echo "say where the raw data of $(TARGET) is: TARGET_DATA=/path/to/folder, or set C2VL_DATA to the folder that holds $(TARGET)/"; exit 2; }

prompts: need-dataset $(CORE) ## Index, skeletons, crop, caption, embed, pack: DATASET=… [DATA=…] [RECIPE=…]
	@$(BIN)/c2vl-pipeline prompts --dataset $(call quoted,$(DATASET)) --data $(call quoted,$(DATA)) --work $(call quoted,$(WORK)) $(recipe) $(ARGS)

look: $(CORE) ## Open the gallery of crops and captions: [DATASET=…], without it the demo's
	@$(BIN)/c2vl-pipeline inspect --work $(call quoted,$(if $(DATASET),$(WORK),$(WORKROOT)/demo)) $(ARGS)
	@$(BIN)/python -m webbrowser $(call quoted,$(abspath $(if $(DATASET),$(WORK),$(WORKROOT)/demo))/inspect.html) >/dev/null 2>&1 || true

reproduce: need-benchmark prompts ## From raw data to the report with controls, one seed: DATASET=… BENCHMARK=…
	@$(BIN)/c2vl-eval benchmark --data $(call quoted,$(WORK)) --benchmark $(call quoted,$(BENCHMARK)) --out $(call quoted,$(OUT)) $(recipe)

table: need-benchmark $(CORE) ## hard, intra and the paper's targets over SEEDS=3, vision only, with controls
	@$(BIN)/c2vl-eval benchmark --data $(call quoted,$(WORK)) --benchmark $(call quoted,$(BENCHMARK)) --out $(call quoted,$(OUT)-table) $(recipe) --seeds $(SEEDS) \
		--targets 'partition(cosine)' --targets hard --targets intra --set training.pretrain.knowledge=vision

protocols: need-benchmark need-target prompts ## Every protocol with controls: DATASET=… BENCHMARK=… [TARGET=… TARGET_DATA=…] [SEEDS=3]
	@# of the target only the joints are needed: a packed one is taken as it is, another is packed without any model
	@$(if $(TARGET),test -f $(call quoted,$(WORKROOT)/$(TARGET)/packed/packed.json) || \
		$(BIN)/c2vl-pipeline prompts --dataset $(call quoted,$(TARGET)) --data $(call quoted,$(TARGET_DATA)) --work $(call quoted,$(WORKROOT)/$(TARGET)) --recipe heuristic)
	@$(BIN)/c2vl-eval benchmark --data $(call quoted,$(WORK)) --benchmark $(call quoted,$(BENCHMARK)) --out $(call quoted,$(OUT)-protocols) $(recipe) --seeds $(SEEDS) \
		--protocol all $(foreach one,$(TARGETS),--targets $(call quoted,$(one))) $(if $(TARGET),--target $(call quoted,$(WORKROOT)/$(TARGET)))

paper: $(CORE) ## Tables I-VIII and Figures 4-8 over every dataset below WORKROOT: [ONLY=table7] [RECIPE=…]
	@$(BIN)/c2vl-eval paper --work $(call quoted,$(WORKROOT)) --out $(call quoted,$(RUNROOT)/paper) $(foreach one,$(ONLY),--only $(call quoted,$(one))) $(recipe) $(ARGS)

test: $(DEV) ## Run all tests on JOBS=2 processors
	@$(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

test-fast: $(DEV) ## Run the tests without slow, stress and browser
	@$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not stress and not browser" $(ARGS)

coverage: $(DEV) ## Run all tests and say which lines they never reach
	@$(BIN)/python -m pytest -q -n $(JOBS) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(DEV) ## Ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(CORE) ## Measure on the processor, see benchmarks/README.md; JSON goes to RUNROOT/bench
	@export C2VL_BENCH=$(call quoted,$(RUNROOT))/bench/$$(date +%Y%m%d-%H%M%S).json; failed=; \
		for script in $(filter-out benchmarks/bench_gpu.py,$(wildcard benchmarks/bench_*.py)); do \
			echo "== $$script"; $(BIN)/python $$script $(ARGS) || failed="$$failed $$script"; done; \
		test ! -f "$$C2VL_BENCH" || echo "kept in $$C2VL_BENCH"; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

bench-gpu: $(CORE) ## Measure training and full-size models on one GPU, 10 minutes (tiny sizes without one)
	@C2VL_BENCH=$(call quoted,$(RUNROOT))/bench/gpu-$$(date +%Y%m%d-%H%M%S).json $(BIN)/python benchmarks/bench_gpu.py $(ARGS)

stress: $(DEV) ## Kill and damage a pipeline and a pre-training at random, then compare with clean runs: [KILLS=20]
	@$(BIN)/c2vl-pipeline synth --out $(call quoted,$(WORKROOT)/stress-raw)
	@$(BIN)/c2vl-pipeline prompts --dataset synthetic --data $(call quoted,$(WORKROOT)/stress-raw) --work $(call quoted,$(WORKROOT)/stress) --recipe debug
	@$(BIN)/python benchmarks/stress/chaos.py --work $(call quoted,$(WORKROOT)/stress) --limit 64 --kills $(KILLS) $(ARGS)
	@$(BIN)/python benchmarks/stress/kill_training.py --work $(call quoted,$(WORKROOT)/stress) --kills $(KILLS)

$(DOCS): $(CORE)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch "$@"

docs: $(DOCS) ## Build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove the virtual environment and what demo made
	rm -rf $(call quoted,$(VENV)) $(foreach one,demo demo-raw stress stress-raw,$(call quoted,$(WORKROOT)/$(one))) $(call quoted,$(RUNROOT)/demo)
