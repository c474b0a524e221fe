# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# `make demo` and `make test` do everything on a machine with make and Python >= 3.10.
# With a sourced ROS 2 they use that ROS; without one, ROS 2 comes as wheels from PyPI.

PYTHON ?= python3
VENV ?= .venv
# The ROS 2 wheels to take where no ROS 2 is sourced: kilted or jazzy.
ROS_SET ?= kilted
# The ONNX Runtime to install, one of the extras cpu, gpu, openvino.
ENGINE ?= cpu
# A pip index for torch: PyPI's own wheel brings gigabytes of CUDA, while
# https://download.pytorch.org/whl/cpu has one without.
TORCH_INDEX ?=
# Frames of the demo's sequence.
FRAMES ?= 60
DEMO_ARGS ?=
BENCH_ARGS ?=
ACCURACY_ARGS ?=
# Labelled stereo pairs for accuracy and for the tests on real data.
STEREO_KD_DATA ?= $(abspath ../shared/data)
# The model that demo and accuracy run: a file, or a name or size of a shipped one.
MODEL ?= small
PYTEST_ARGS ?=
# Processes for the tests that need no machine to themselves.
TEST_JOBS ?= 2
# How many damaged messages `fuzz` throws, and how long `soak` runs.
FUZZ_N ?= 100000
SECONDS ?= 60
FAULTS_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=
KILL_ARGS ?=

SHELL := /bin/bash
, := ,
BIN := $(VENV)/bin
TORCH_SOURCE := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# A sourced ROS 2 that this Python can import, or the wheels.
ROS_SOURCED := $(if $(ROS_DISTRO),$(shell $(PYTHON) -c 'import rclpy; print("yes")' 2>/dev/null))
ifeq ($(ROS_SOURCED),yes)
FLAVOUR := $(ROS_DISTRO)-sourced-$(ENGINE)
VENV_OPTIONS := --system-site-packages
EXTRAS := $(ENGINE)
CONSTRAINTS := -c constraints.txt -c $(VENV)/constraints-ros.txt
else
FLAVOUR := $(ROS_SET)-wheels-$(ENGINE)
EXTRAS := ros,$(ENGINE)
CONSTRAINTS := $(if $(filter jazzy,$(ROS_SET)),-c constraints-jazzy.txt,-c constraints.txt)
endif
RUNTIME := $(VENV)/.runtime-$(FLAVOUR)
COMPLETE := $(VENV)/.complete-$(FLAVOUR)
RECIPE := setup.py setup.cfg pyproject.toml constraints.txt constraints-jazzy.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet

# A run talks to itself only: its own DDS domain, this machine, and no Python of another
# environment's wheels (the ROS wheels leave this mark in the processes they start).
ifndef ROS_DOMAIN_ID
export ROS_DOMAIN_ID := $(shell echo $$(( $$$$ % 100 + 1 )))
endif
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
export STEREO_KD_DATA
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_DEFAULT_TIMEOUT ?= 60
export PIP_RETRIES ?= 10

.PHONY: help demo test env lint accuracy bench bench-check graph-table scale faults fuzz soak kill clean

help:
	@echo 'make demo    make the environment (without torch) and run depth on a live ROS 2 graph'
	@echo 'make test    add what the tests and the training need, and run the tests'
	@echo 'make env     make $(VENV) with all that the others need'
	@echo 'make lint    check style, formatting and package.xml'
	@echo 'make accuracy     errors and times beside SGBM on the labelled pairs in STEREO_KD_DATA'
	@echo 'make bench        time every model beside its peers: bench.json, bench.png'
	@echo 'make graph-table  what each way of writing the graph wins: graphs.json'
	@echo 'make scale        cost against pixels, range, cameras; the start: scale.json, scale.png'
	@echo 'make bench-check  the same; fails when a ratio grew since benchmarks/baselines'
	@echo 'make faults  inject every named fault, and see the node answer and recover'
	@echo 'make fuzz    throw $(FUZZ_N) damaged messages at the pipeline, and judge every answer'
	@echo 'make soak    run the node at full rate for SECONDS=$(SECONDS), and plot latency and memory'
	@echo 'make kill    kill -9 an adaptation and an evaluation at random moments, and compare the ends'
	@echo 'make clean   remove $(VENV)'
	@echo 'Options: PYTHON=python3.12  ROS_SET=jazzy  ENGINE=gpu  FRAMES=20  MODEL=FILE'
	@echo '         VENV=DIR  TORCH_INDEX=URL  STEREO_KD_DATA=DIR  TEST_JOBS=2  PYTEST_ARGS=test/test_camera.py'

demo: $(RUNTIME)
	$(BIN)/stereo-kd demo --frames $(FRAMES) --model $(MODEL) $(DEMO_ARGS)

# Tests of live processes run one at a time, first; the others on both cores. With PYTEST_ARGS, one
# run of those.
LIVE_TESTS := test/node test/hostile
OTHER_TESTS := -n $(TEST_JOBS) --dist worksteal $(addprefix --ignore=,$(LIVE_TESTS)) test
test: $(COMPLETE)
ifdef PYTEST_ARGS
	@$(call pytest,$(PYTEST_ARGS)); exit $$status
else
	@$(call pytest,$(LIVE_TESTS)); live=$$status; \
	$(call pytest,$(OTHER_TESTS)); [ $$live = 0 ] || status=$$live; exit $$status
endif

# A crash of the middleware ends the interpreter without a verdict, hence once more, aloud; tests
# that fail are a verdict.
define pytest
echo "pytest $1"; $(BIN)/python -m pytest $1; status=$$?; if [ $$status -ge 128 ]; then \
echo "pytest was ended by signal $$((status - 128)): once more"; \
$(BIN)/python -m pytest $1; status=$$?; fi
endef

env: $(COMPLETE)

lint: $(COMPLETE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -c 'from catkin_pkg.package import parse_package; parse_package("package.xml")'

accuracy: $(COMPLETE)
	$(BIN)/stereo-kd-train evaluate --data $(STEREO_KD_DATA) --model $(MODEL) --peer sgbm-3way $(ACCURACY_ARGS)

# Ratios of one run are what is compared, so the machine may be another, but not busier.
HITNET := $(wildcard $(STEREO_KD_DATA)/weights/hitnet/hitnet_eth3d.onnx)
PROVIDERS := $(if $(filter gpu,$(ENGINE)),tensorrt$(,)cuda$(,))$(if $(filter openvino,$(ENGINE)),openvino$(,))cpu
PEERS := sgbm-3way,bm$(if $(HITNET),$(,)hitnet=$(HITNET))
BENCH := $(BIN)/stereo-kd bench --providers $(PROVIDERS)

bench: $(RUNTIME)
	$(BENCH) --peers $(PEERS),sgbm-hh --epe-pairs 8 --json bench.json \
	    $$($(BIN)/python -c 'import matplotlib' 2>/dev/null && echo --plot bench.png) $(BENCH_ARGS)

bench-check: $(RUNTIME)
	$(BENCH) --peers $(PEERS) --check benchmarks/baselines $(BENCH_ARGS)

# One change at a time, all timed in turn; slow to export, so kept until the code of a form changes.
GRAPHS := $(VENV)/graphs/upsampling_by_reduction.onnx
$(GRAPHS): benchmarks/graph_table.py $(wildcard training/stereo_kd_training/networks/*.py) | $(COMPLETE)
	$(BIN)/python benchmarks/graph_table.py export $(VENV)/graphs --model $(MODEL)

graph-table: $(GRAPHS)
	$(BIN)/python benchmarks/graph_table.py measure $(VENV)/graphs --json graphs.json \
	    $(if $(filter openvino,$(ENGINE)),--provider openvino --precision bf16)

scale: $(COMPLETE)
	$(BIN)/python benchmarks/scale.py --model $(MODEL) --json scale.json --plot scale.png \
	    $(if $(filter openvino,$(ENGINE)),--provider openvino)

HOSTILE := PYTHONPATH=test/support:test/hostile$(if $(PYTHONPATH),:$(PYTHONPATH)) $(BIN)/python

faults: $(COMPLETE)
	$(HOSTILE) test/hostile/run_faults.py $(FAULTS_ARGS)

fuzz: $(COMPLETE)
	$(HOSTILE) test/hostile/fuzz.py --messages $(FUZZ_N) $(FUZZ_ARGS)

soak: $(COMPLETE)
	$(HOSTILE) test/hostile/soak.py --seconds $(SECONDS) --model $(MODEL) $(SOAK_ARGS)

kill: $(COMPLETE)
	$(HOSTILE) test/hostile/kill.py $(KILL_ARGS)

clean:
	rm -rf $(VENV)

# What the robot needs, and proof that torch is not part of it.
$(RUNTIME): $(RECIPE)
	@command -v $(PYTHON) >/dev/null || { \
	    echo 'This machine is not ready: no $(PYTHON): sudo apt-get install python3 python3-venv' >&2; \
	    exit 1; }
	@$(PYTHON) tools/preflight.py check $(if $(ROS_SOURCED),--sourced-ros)
	@if ls $(VENV)/.runtime-* >/dev/null 2>&1 && [ ! -e $@ ]; then \
	    echo '$(VENV) was made for something else than $(FLAVOUR): making it anew'; \
	    rm -rf $(VENV); fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV_OPTIONS) $(VENV)
	@$(if $(ROS_SOURCED),$(PYTHON) tools/preflight.py ros-constraints > $(VENV)/constraints-ros.txt)
	@echo 'Installing the runtime ($(FLAVOUR)) into $(VENV)'
	@$(PIP_INSTALL) $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@if [ ! -e $(COMPLETE) ] && [ -z '$(ROS_SOURCED)' ] && $(BIN)/python -c 'import torch' 2>/dev/null; then \
	    echo 'torch came in with the runtime, which must do without it' >&2; exit 1; fi
	@touch $@

# What training and the tests need on top.
$(COMPLETE): $(RUNTIME)
	@echo 'Installing torch and the test tools into $(VENV)'
	@$(PIP_INSTALL) $(CONSTRAINTS) $(TORCH_SOURCE) -e '.[$(EXTRAS),train,test]'
	@touch $@
