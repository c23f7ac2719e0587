# Everything starts from Python 3.11 or newer with pip; the rest is installed into .venv, at the versions of constraints.txt.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# The first of these that is new enough. Override with `make PYTHON=...`.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
# Processes that run tests side by side: most tests wait more than they compute.
WORKERS ?= 4
# System tests start browsers and whole Airflows, each of which computes with all processors.
SYSTEM_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --dist worksteal
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SET_UP := pyproject.toml constraints.txt
# Tests start many processes, each of which would compile the package and Airflow's other sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(VENV)/.demo ## move files through Airflow and a real SFTP server, step by step (no root, no sshd needed)
	@$(BIN)/python -m demo

.PHONY: test
test: $(VENV)/.dev openssh sftpservers ## run all tests but the system tests (make test ARGS="-k scheduler" runs some)
	@$(PYTEST) -n $(WORKERS) -m "not system and not cluster" $(ARGS)

.PHONY: test-system
test-system: $(VENV)/.dev openssh chromium ## run the system tests: whole Airflows, a browser, killed processes, gigabytes
	@$(PYTEST) -n $(SYSTEM_WORKERS) -m "system and not cluster" $(ARGS)

# FAULTS=all also loses the connection a second time, on every server.
.PHONY: test-all
test-all: $(VENV)/.dev openssh sftpservers chromium ## run all tests with more faults and more examples; measure coverage (an hour)
	@FAULTS=all $(PYTEST) -n $(WORKERS) --timeout 600 --hypothesis-profile thorough -m "not cluster" --cov --cov-report term $(ARGS)

.PHONY: reliability
reliability: $(VENV)/.dev ## lose the connection at every message of every operation, and write docs/reliability.md
	@FAULTS=all $(BIN)/python -m tests.support.faults.table

.PHONY: soak
soak: $(VENV)/.dev openssh ## move files for half an hour over a connection that fails at random (ARGS="--minutes 2 --gibibytes 1")
	@$(BIN)/python -m tests.support.soak $(ARGS)

.PHONY: servers
servers: $(VENV)/.dev openssh sftpservers ## run the contract suite on every server there is, and write docs/servers.md
	@$(BIN)/python -m pytest -n 2 --servers all --servers-page docs/servers.md $(wildcard tests/backend/test_contract_*.py) $(ARGS)

# ARGS chooses sessions, as in ARGS='-s "airflow(3.1.8-py3.13-newest)"'; `.venv/bin/nox --list` shows them.
.PHONY: matrix
matrix: $(VENV)/.dev openssh sftpservers chromium ## run the tests and the demo on each Airflow and Python, and write docs/versions.md (hours)
	@WORKERS=$(WORKERS) $(BIN)/nox $(ARGS)

.PHONY: floor
floor: $(VENV)/.dev openssh ## run the tests of the Airflow layer and the demo on the oldest supported Airflow
	@WORKERS=$(WORKERS) $(BIN)/nox --error-on-missing-interpreters -s floor $(ARGS)

# CLUSTER_VENV has Airflow with Celery and PostgreSQL, which the other tests do without.
CLUSTER_VENV := $(VENV)/cluster
CLUSTER = $(CLUSTER_VENV)/bin/python -m pytest -s
.PHONY: cluster
cluster: $(CLUSTER_VENV)/.installed openssh clusterservices ## kill, freeze and restart the parts of an Airflow on Celery, and write docs/cluster.md (half an hour)
	@$(CLUSTER) -m cluster --cluster-page docs/cluster.md tests/cluster $(ARGS)

.PHONY: cluster-quick
cluster-quick: $(CLUSTER_VENV)/.installed openssh clusterservices ## run three of these tests with small files (five minutes)
	@$(CLUSTER) -m "cluster and quick" tests/cluster $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## check style, layers, docstrings and types
	@failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/lint-imports --no-logo || failed=1; \
	$(BIN)/python scripts/check_prose.py || failed=1; \
	$(BIN)/mypy || failed=1; \
	exit $$failed

.PHONY: format
format: $(VENV)/.dev ## put the source into the form that lint wants
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.bench openssh sftpservers ## measure speed, memory and CPU beside other clients, with targets (hours; see ARGS=--help)
	@$(BIN)/python -m benchmarks $(ARGS)

# Single parts of it.
PARTS := clients distant-clients large-files directories many-files syncing watching waiting imports masking
.PHONY: $(PARTS)
$(PARTS): $(VENV)/.bench openssh sftpservers
	@$(BIN)/python -m benchmarks --part $@ $(ARGS)

.PHONY: release
release: $(VENV)/.dev openssh sftpservers chromium ## check, test and build a release, all but the upload (hours)
	@$(BIN)/python -m scripts.release

.PHONY: clean
clean: ## remove .venv, caches and build products
	@rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .nox .pytest_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What a fresh environment gets today becomes the set everybody gets.
FLOOR := constraints/airflow-3.0.6
.PHONY: constraints
constraints: $(VENV)/.dev ## renew the pinned versions with the newest that fit together
	@rm -rf build/constraints
	@$(PYTHON) -m venv build/constraints
	@build/constraints/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[dev,demo,bench,cluster]'
	@sed '/^[^#]/,$$d' constraints.txt > build/constraints/new
	@build/constraints/bin/python -m pip --disable-pip-version-check freeze --exclude-editable >> build/constraints/new
	@mv build/constraints/new constraints.txt
	@rm -rf build/constraints
	@grep -c == constraints.txt | sed 's/$$/ versions pinned in constraints.txt/'
	@sed '/^[^#]/,$$d' $(FLOOR).txt > build/floor.txt
	@echo 'apache-airflow==$(FLOOR:constraints/airflow-%=%)' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--no-header --no-annotate --constraint - --constraint $(FLOOR).in --extra test --extra demo pyproject.toml >> build/floor.txt
	@mv build/floor.txt $(FLOOR).txt

$(VENV)/.demo: $(BIN)/python $(SET_UP)
	@echo "Installing the package and its demo into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.bench: $(BIN)/python $(SET_UP)
	@echo "Installing the package and what it is compared with into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --editable '.[bench]'
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SET_UP)
	@echo "Installing the package and its development tools into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --editable '.[dev,demo]'
	@$(PIP) install --constraint constraints.txt --no-deps --upgrade --target $(VENV)/sftp-provider apache-airflow-providers-sftp
	@touch $@

$(CLUSTER_VENV)/.installed: $(VENV)/.dev
	@echo "Installing the package and Airflow with Celery and PostgreSQL into $(CLUSTER_VENV) ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CLUSTER_VENV)
	@$(BIN)/uv pip install --quiet --python $(CLUSTER_VENV)/bin/python --constraint constraints.txt --editable '.[cluster]'
	@touch $@

# Some systems package ensurepip apart from Python: there pip, which is assumed, installs pip.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found; try make PYTHON=/path/to/python3" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); else \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --disable-pip-version-check --quiet --python $(VENV)/bin/python install pip; fi

# sshd for the tests: installed where that is possible, else its tests are skipped and the test summary says so.
.PHONY: openssh
openssh:
	@if { command -v sshd || test -x /usr/sbin/sshd; } >/dev/null && command -v sftp >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing OpenSSH with apt (the tests start an sshd of their own, on loopback) ..."; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --no-install-recommends openssh-server openssh-client; } >/dev/null || \
			echo "apt failed: going on without OpenSSH" >&2; \
	fi

# Servers of other makers, in the same way.
.PHONY: sftpservers
sftpservers:
	@tests/support/servers/install.sh

# PostgreSQL and Redis for the cluster, in the same way.
.PHONY: clusterservices
clusterservices:
	@tests/support/cluster/install.sh

# Chromium for the test of the connection form, in the same way.
.PHONY: chromium
chromium:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium with apt (a test fills in the connection form with it) ..."; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --no-install-recommends chromium chromium-driver; } >/dev/null || \
			echo "apt failed: going on without Chromium" >&2; \
	fi
