# Everything goes into .venv, which the first target makes; later runs find it and start at once.
PYTHON ?= python3
VENV ?= .venv
# Another build of torch is chosen here, once: make setup TORCH=torch==2.11.0
TORCH ?= $(or $(shell cat $(VENV)/.torch 2>/dev/null),torch==2.13.0)
ARGS ?=

BIN := $(VENV)/bin
# The stamp names the build of torch, so that another choice installs again.
READY := $(VENV)/.ready-$(subst /,_,$(TORCH))
COLCON_READY := $(VENV)/.colcon-ready

.PHONY: help setup demo test test-all test-kernels colcon clean

help: ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(READY) ## install into .venv

$(READY): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else "isfl_ros needs Python 3.10 to 3.12, this is %d.%d; pass PYTHON=python3.11, say" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 "$(TORCH)" -e ".[ros,openvino,triton,demo,train,test]"
	@test -x $(BIN)/isfl || { echo "the programs of isfl_ros were not installed into $(BIN)" >&2; exit 1; }
	@rm -f $(VENV)/.ready-* && echo "$(TORCH)" > $(VENV)/.torch && touch "$@"

demo: $(READY) ## the main job: player, fusion node, recorder; writes demo_out/
	$(BIN)/isfl demo --out demo_out --overwrite $(ARGS)

# Half of the tests wait for processes that talk over DDS, the other half computes: two workers, whole files each.
WORKERS ?= 2

test: $(READY) ## the tests, without those marked slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not kernels" $(ARGS)

test-all: $(READY) ## every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not kernels" $(ARGS)

test-kernels: $(READY) ## compile every kernel for every chip, width and grid; ISFL_TEST_DEVICE=cuda runs them on a GPU
	$(BIN)/python -m pytest test/ops -rA $(ARGS)

$(COLCON_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -e ".[colcon]"
	@touch "$@"

colcon: $(COLCON_READY) ## build and test with colcon, then run the installed node
	bash test/colcon_check.sh $(BIN)

clean: ## remove what builds leave behind; .venv stays
	rm -rf build install log demo_out

.PHONY: benchmark benchmark-gpu
NAME ?= $(shell date +%Y-%m-%d)
benchmark: $(READY) ## time, accuracy and memory of models/isfl on this machine (ARGS='--size 640x480 --json FILE')
	$(BIN)/isfl benchmark $(ARGS)

benchmark-gpu: $(READY) ## everything that needs a CUDA device, into docs/benchmarks/NAME (ARGS='--reference FOLDER')
	$(BIN)/python -m isfl_ros.benchmarks.gpu --out docs/benchmarks/$(NAME) $(ARGS)

.PHONY: train-full
DATA ?= ../shared/data
train-full: $(READY) ## the full schedule of models/isfl on a GPU, then its table (DATA=folder of the pairs)
	$(BIN)/isfl train vehicle --data $(DATA) --out runs/vehicle --device cuda --resume
	$(BIN)/isfl evaluate --model runs/vehicle/model isfl --out runs/vehicle/evaluation --overwrite --data \
	    roadscene_val=$(DATA)/MANIFEST.csv:set=roadscene,use=val tno=$(DATA)/MANIFEST.csv:set=tno m3fd=$(DATA)/MANIFEST.csv:set=m3fd \
	    msrs=$(DATA)/MANIFEST.csv:set=msrs_test,outside=00130..01190

.PHONY: ablation
ABLATION ?= readings
ablation: $(READY) ## train the variants of config/ablations/ABLATION.yaml into runs/ABLATION and compare them (ARGS='--only NAME --seeds 0 1 2')
	$(BIN)/python -m isfl_ros.benchmarks.ablation $(ABLATION) --data $(DATA) --out runs/$(ABLATION) $(ARGS)

.PHONY: soak
SOAK ?= runs/soak
soak: $(READY) ## 20 minutes sustained, 20 overloaded, 200 lifecycle cycles, over real DDS, into SOAK (ARGS='--parts lifecycle --minutes 5')
	$(BIN)/python -m isfl_ros.benchmarks.soak --out $(SOAK) $(ARGS)
