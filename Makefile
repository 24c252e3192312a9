# lgss_keyring: `make help` lists the targets.

PYTHON ?= python3
PREFIX ?= /usr
DESTDIR ?=
SYSCONFDIR ?= /etc
# `no`: install the front in Python also where there is a C compiler.
NATIVE ?= yes
# Whether lgssd's units are installed: where systemd is.
SYSTEMD ?= $(if $(wildcard /usr/lib/systemd/system /lib/systemd/system),yes,no)
VENV := .venv
BIN := $(VENV)/bin
# Built once by `setup`: gssapi takes two minutes. Point it elsewhere to install where nothing can be built.
WHEELS ?= $(VENV)/wheels
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Python without an ending, which ruff does not find by itself.
SCRIPTS := tests/unit-all tests/vm/build tests/vm/vm tests/vm/check
# pyproject.toml has the list. Asked of an interpreter that is there before any recipe runs; one
# without tomllib is refused by a recipe, in words.
dependencies = $(shell $(1) -c 'import shlex, tomllib; \
	print(shlex.join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' 2>/dev/null)

# The interpreter itself, not a shim or a venv's link: it goes into a shebang.
REAL_PYTHON = $(shell $(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))')

.DEFAULT_GOAL := help
.PHONY: help setup system-packages demo check lint test bench install uninstall clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile tests/vm/vm.mk | sort | while IFS='|' read -r t h; do printf '  %-12s %s\n' "$$t" "$$h"; done
	@echo 'PREFIX and DESTDIR apply to install and uninstall, SYSTEMD=no to install; PYTHON chooses the interpreter.'

setup: system-packages $(VENV)/.ready ## install system packages and .venv (nothing to do: quiet)

system-packages:
	@./setup-packages

# Before anything is compiled.
python-is-new-enough = $(1) -c 'import sys; sys.exit("Python 3.11 or newer is needed; PYTHON=... chooses one" if sys.version_info < (3, 11) else 0)'

$(VENV)/.ready: pyproject.toml Makefile
	@echo 'setup: building $(VENV) (gssapi is compiled, this takes some minutes once)'
	@$(call python-is-new-enough,$(PYTHON))
	@$(REAL_PYTHON) -m venv $(VENV)
	@$(PIP) wheel --find-links $(VENV)/wheels --wheel-dir $(VENV)/wheels pip $(call dependencies,$(REAL_PYTHON))
	@$(PIP) install --find-links $(VENV)/wheels --editable '.[dev]'
	@touch $@

demo: root-for-demo setup ## show the main job on this machine, then clean up (KEEP=1: wait for Enter before)
	@$(BIN)/python -m tests.support.demo

# Said before anything is compiled.
.PHONY: root-for-demo
root-for-demo:
	@[ "$$(id -u)" = 0 ] || { echo 'make demo needs root: it installs a request-key rule, and acts as two users' >&2; exit 1; }

lint: setup ## ruff, mypy --strict, and who may import whom
	$(BIN)/ruff check . $(SCRIPTS)
	$(BIN)/ruff format --check . $(SCRIPTS)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	@$(if $(and $(shell command -v cppcheck),$(shell command -v gcc)),$(MAKE) -s native-lint,echo 'lint: no cppcheck or no gcc here, so native/ is not looked at')
	@# Inside the machine these import one another from their own folder.
	cd tests/vm && MYPYPATH=../.. ../../$(BIN)/mypy --explicit-package-bases --config-file ../../pyproject.toml *.py

.PHONY: native native-lint
native: build-packages ## build the front in C (native/; build/native/lgss_keyring)
	@$(MAKE) -sC native

native-lint: ## what gcc's -fanalyzer and cppcheck say about the front in C
	@$(MAKE) -sC native lint

# Not `setup`: these need what compiles the wheels, no KDC and no root.
.PHONY: unit unit-all build-packages
build-packages:
	@./setup-packages build

unit: build-packages $(VENV)/.ready ## the unit tests: no root, no network, no KDC
	$(BIN)/python -m pytest tests/unit

unit-all: build-packages $(VENV)/.ready ## the unit tests under Python 3.11, 3.12 and 3.13 (or PYTHONS='...')
	@$(BIN)/python tests/unit-all $(PYTHONS)

test: setup ## every test (root, a real kernel and KDC)
	$(BIN)/python -m pytest

.PHONY: coverage
coverage: setup ## the lines of the package that no test reaches (twice as long as `test`; kept in build/coverage)
	@$(BIN)/python -m tests.coverage_run

.PHONY: mutants
mutants: setup ## what the tests do not notice: N=200 small mistakes in the package (SEED=, MODULES='front monitor/turn'; AGAIN=1: the last survivors)
	@$(BIN)/python -m tests.mutants $(if $(N),-n $(N)) $(if $(SEED),--seed $(SEED)) $(if $(AGAIN),--again) $(MODULES)

check: lint test ## lint, types and every test

bench: setup ## an upcall, with lgssd and without; the library (build/bench.json, build/bench.png; JSON=FILE)
	@$(BIN)/python -m bench.bench_fast --json build/bench.json --picture build/bench.png
	@$(BIN)/python -m bench.bench_upcall $(if $(JSON),--json $(JSON))
	@$(BIN)/python -m bench.bench_sptlrpc $(if $(JSON),--json $(JSON).sptlrpc)

# The interpreter that runs the installed program: what is asked for, else that of the wheels.
INSTALL_PYTHON = $(if $(filter-out file default,$(origin PYTHON)),$(PYTHON),$(firstword $(wildcard $(BIN)/python build/wheels/bin/python) $(PYTHON)))
tools-install = $(INSTALL_PYTHON) -EsB tools/install.py $(1) --prefix '$(PREFIX)' --sysconfdir '$(SYSCONFDIR)' --destdir '$(DESTDIR)'

.PHONY: wheels build-wheels runtime-packages
wheels: ## the wheels that an installation unpacks; built if there are none, which takes a compiler
	@test -n "$$(ls '$(WHEELS)'/gssapi-*.whl 2>/dev/null)" || $(MAKE) --no-print-directory build-wheels

# An environment of its own: those who install need nothing that tests or lint need.
build-wheels: build-packages
	@echo 'wheels: building them into $(WHEELS) (gssapi is compiled, this takes some minutes once)'
	@$(call python-is-new-enough,$(PYTHON))
	@$(REAL_PYTHON) -m venv build/wheels
	@build/wheels/bin/python -m pip -qq --disable-pip-version-check wheel --wheel-dir '$(WHEELS)' pip $(call dependencies,$(REAL_PYTHON))

# A package in the making (DESTDIR) has dependencies of its own.
runtime-packages:
	@$(if $(DESTDIR),:,./setup-packages runtime)

install: runtime-packages wheels ## install for request-key(8), under PREFIX and DESTDIR (NATIVE=no: without the front in C)
	@$(call tools-install,install) --wheels '$(WHEELS)' $(if $(filter no,$(NATIVE)),--no-native) $(if $(filter no,$(SYSTEMD)),--no-units)

uninstall: ## take away what install put there
	@$(call tools-install,uninstall)

include tests/vm/vm.mk

clean: ## remove what was built here, .venv included
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
