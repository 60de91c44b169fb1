# SPDX-License-Identifier: BSD-3-Clause
# One target for each thing that a person does. `make` alone lists them.

# nbdkit's Python plugin embeds the system's Python: the virtual environment has to be of the same.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
# Two compilers at once need about 1 GiB.
JOBS ?= $(shell nproc)
# Options of single targets, e.g. make test PYTEST_ARGS="-k wal", make crash ROUNDS=200.
PYTEST_ARGS ?=
BENCH_ARGS ?=
# VM=no leaves out the packages of the tests in a virtual machine, which are then skipped.
VM ?= yes
ROUNDS ?= 200
FUZZ_SECONDS ?= 60
# Options of the chaos campaign, e.g. make chaos CHAOS_ARGS="--seed 7 --rounds 100"
CHAOS_ARGS ?=
# Options of the simulator, e.g. make sim SIM_ARGS="--seed 229 --seeds 1 --trace"
SIM_ARGS ?= --seeds 10000

export PATH := $(abspath $(BIN)):$(PATH)
export MESON_NUM_PROCESSES := $(JOBS)

SOURCES := $(shell find csrc gateway -type f ! -name '*.pyc' 2>/dev/null) \
	meson.build meson_options.txt pyproject.toml
C_ONLY := -Dwerror=true -Dpython=false -Dtests=true

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help deps venv build demo test test-c test-python test-asan test-tsan lint format bench \
	sim fuzz crash chaos power check-tgt-abi install-plugin clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | \
		awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

deps: ## Install the Debian packages that building and running need
	@packaging/install-deps.sh build run

# The packages are looked at only when the script or the list of requirements changed.
$(VENV)/.deps: packaging/install-deps.sh
	@packaging/install-deps.sh build run
	@mkdir -p $(VENV) && touch $@

$(VENV)/.deps-%: packaging/install-deps.sh
	@packaging/install-deps.sh $*
	@mkdir -p $(VENV) && touch $@

$(VENV)/.ready: pyproject.toml packaging/requirements.py | $(VENV)/.deps
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PYTHON) packaging/requirements.py test lint > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	@touch $@

venv: $(VENV)/.ready ## Make .venv with everything that is needed from PyPI

# --no-build-isolation keeps the build folder, so only what changed is compiled again.
$(VENV)/.built: $(SOURCES) $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--force-reinstall --config-settings=build-dir=$(BUILD)/package \
		--config-settings=compile-args=-j$(JOBS) .
	@touch $@

build: $(VENV)/.built ## Build and install copygate into .venv

demo: $(VENV)/.built ## Show it: store, volume, NBD export, ext4 image, fio; stops cleanly
	@$(BIN)/python -m gateway.cli.demo

$(BUILD)/c/build.ninja: $(VENV)/.ready $(VENV)/.deps-test
	meson setup $(BUILD)/c $(C_ONLY)

test: $(VENV)/.built $(VENV)/.deps-test $(VENV)/.deps-vm $(BUILD)/c/build.ninja ## All tests: C, then Python
	@$(BIN)/python packaging/run_tests.py --c $(BUILD)/c -- $(PYTEST_ARGS)

test-c: $(BUILD)/c/build.ninja ## The C tests alone
	meson test -C $(BUILD)/c --print-errorlogs

test-python: $(VENV)/.built $(VENV)/.deps-test ## The Python tests alone
	$(BIN)/pytest $(PYTEST_ARGS)

# The package too is built with the sanitizers, and installed below the build folder: the whole store
# then runs under them, Python's part as it is.
SANITIZED := -Dtests=true -Dwerror=true -Db_lundef=false

$(BUILD)/asan/build.ninja: $(VENV)/.ready $(VENV)/.deps-test
	meson setup $(BUILD)/asan $(SANITIZED) -Db_sanitize=address,undefined --prefix=$(abspath $(BUILD))/asan/root

$(BUILD)/tsan/build.ninja: $(VENV)/.ready $(VENV)/.deps-test
	meson setup $(BUILD)/tsan $(SANITIZED) -Db_sanitize=thread --prefix=$(abspath $(BUILD))/tsan/root

test-asan: $(VENV)/.built $(BUILD)/asan/build.ninja ## C tests and NBD IO under ASan and UBSan
	meson test -C $(BUILD)/asan --print-errorlogs --timeout-multiplier 5
	packaging/sanitized-io.sh address $(BUILD)/asan $(BIN)

test-tsan: $(VENV)/.built $(BUILD)/tsan/build.ninja ## C tests and NBD IO under TSan
	setarch -R meson test -C $(BUILD)/tsan --print-errorlogs --timeout-multiplier 10
	packaging/sanitized-io.sh thread $(BUILD)/tsan $(BIN)

C_FILES = $(shell git ls-files -co --exclude-standard 'csrc/*.[ch]' 'tests/*.[ch]')

lint: $(VENV)/.built $(VENV)/.deps-lint $(BUILD)/c/build.ninja ## ruff, mypy, clang-format, warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p gateway
	clang-format-14 --dry-run -Werror $(C_FILES)
	meson compile -C $(BUILD)/c
	bash -n packaging/*.sh .ci/run

format: $(VENV)/.ready $(VENV)/.deps-lint ## Format Python and C
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	clang-format-14 -i $(C_FILES)

bench: $(VENV)/.built $(VENV)/.deps-test $(VENV)/.deps-bench $(BUILD)/c/build.ninja ## Measure, and print ratios to the same machine's own limits
	$(BIN)/python bench/run.py

$(BUILD)/fuzz/build.ninja: $(VENV)/.ready $(VENV)/.deps-fuzz
	CC=clang-14 meson setup $(BUILD)/fuzz -Dfuzz=true -Dpython=false -Dtests=true

fuzz: $(BUILD)/fuzz/build.ninja ## Fuzz the parsers for FUZZ_SECONDS (60) each
	meson compile -C $(BUILD)/fuzz
	packaging/fuzz.sh $(BUILD)/fuzz $(FUZZ_SECONDS)

sim: $(BUILD)/c/build.ninja ## Raft clusters in virtual time, SIM_ARGS (--seeds 10000); then every defect has to be found
	meson compile -C $(BUILD)/c tests/sim/simulate
	$(BUILD)/c/tests/sim/simulate $(SIM_ARGS)
	$(BUILD)/c/tests/sim/simulate --wild-clocks $(SIM_ARGS)
	$(BUILD)/c/tests/sim/simulate --log $(SIM_ARGS)
	$(BUILD)/c/tests/sim/simulate --log --wild-clocks $(SIM_ARGS)
	$(BUILD)/c/tests/sim/simulate --defects --seeds 20000
	$(BUILD)/c/tests/sim/simulate --log --defects --seeds 20000

crash: $(VENV)/.built $(VENV)/.deps-test ## kill -9 at random moments under load, ROUNDS (200) times
	$(BIN)/python tests/cluster/crash_campaign.py --rounds $(ROUNDS)

chaos: $(VENV)/.built $(VENV)/.deps-test ## Hosts, networks, disks and processes fail under load, CHAOS_ARGS (--rounds 20)
	$(BIN)/python tests/chaos/campaign.py $(CHAOS_ARGS)

power: $(VENV)/.built $(VENV)/.deps-test $(VENV)/.deps-vm ## Power loss of a virtual machine under load, ROUNDS times
	$(BIN)/python tests/vm/power_loss.py --rounds $(ROUNDS)

check-tgt-abi: ## Compare the tgtd module's own header with tgt's source (TGT=FOLDER, else Debian's package)
	packaging/check-tgt-abi.sh $(TGT)

install-plugin: $(VENV)/.built ## Copy the C plugin to nbdkit's folder: nbdkit copygate volume=NAME
	install -m 0644 $$($(BIN)/python -c 'from gateway.cli.nbdkit import find_plugin; print(find_plugin("c")[0])') \
		$$(nbdkit --dump-config | sed -n 's/^plugindir=//p')/nbdkit-copygate-plugin.so

clean: ## Remove what was built (.venv stays)
	rm -rf $(BUILD) $(VENV)/.built
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
