# Pareta Gateway. `make` lists the targets. Nothing here needs root, and nothing minds it.
#
# Variables, from the environment or the command line: PORT, DATA_DIR, WORKERS, DATABASE_URL, REDIS_URL,
# NEW_KEY=1 (make run: mint another demo key), BACKEND=triton (make run: the demo on a real Triton server), PYTHON
# (interpreter for .venv), ARGS (more arguments for pytest or the benchmarks), SECONDS and SEED (make faults), MINUTES (make soak).

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Relative, because the path of this folder may hold spaces.
PY := .venv/bin/python
PYTEST = $(PY) -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header -q
UV ?= uv
# Peers are strangers' code: a version is taken when it has been public for two weeks.
PEERS_BEFORE ?= $(shell date -u -d '14 days ago' +%F)

export PORT DATA_DIR WORKERS DATABASE_URL REDIS_URL NEW_KEY BACKEND PYTHON
# An empty variable is the same as none.
$(foreach name,PORT DATA_DIR WORKERS DATABASE_URL REDIS_URL NEW_KEY BACKEND PYTHON,$(if $($(name)),,$(eval unexport $(name))))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: set-up
set-up: ## create or refresh .venv from requirements.lock
	@sh .ci/set-up all

.PHONY: run
run: ## a whole local gateway: databases, engine, demo key and credit (Ctrl-C stops it)
	@sh .ci/set-up run
	@exec $(PY) -m gateway up

.PHONY: test
test: lint ## set up, lint, strict types, import contracts, all tests but the long ones
	@sh .ci/set-up clients
	@sh .ci/set-up triton
	$(PYTEST) -m "not long" $(ARGS)

.PHONY: test-long
test-long: set-up ## what takes minutes by itself: every fault, the benchmarks, the demonstration on Triton (10 min)
	@sh .ci/set-up clients
	@sh .ci/set-up triton
	$(PYTEST) -m long $(ARGS)

.PHONY: second-engine
second-engine: set-up ## the HTTP backend against a real engine that is not ours (llama.cpp's server)
	@sh .ci/set-up engine
	$(PY) -m pytest tests/engines $(ARGS)

.PHONY: triton-storm
triton-storm: set-up ## 300 streams for two minutes through gateway and Triton, a tenth of them left early
	@sh .ci/set-up triton
	@exec $(PY) -m tests.system.triton_storm $(ARGS)

.PHONY: faults
faults: set-up ## break everything under load, then prove the money right (SECONDS=180 SEED=…)
	@exec $(PY) -m tests.faults --seconds $(or $(SECONDS),180) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: mutations
mutations: set-up ## break the ledger's own code, one line at a time: the tests must notice each
	@exec $(PY) -m tests.faults.mutations $(ARGS)

.PHONY: bench
bench: set-up ## the standard benchmarks in under ten minutes (ARGS="small paced-300" runs some)
	@exec $(PY) -m benchmarks run $(ARGS)

.PHONY: bench-growth
bench-growth: set-up ## what a request costs with ever more keys, endpoints, organizations, streams, uptime (15 min)
	@exec $(PY) -m benchmarks growth $(ARGS)

.PHONY: soak
soak: set-up ## an hour of constant load: memory, open files, journal and Redis stay flat (MINUTES=60)
	@exec $(PY) -m benchmarks soak --minutes $(or $(MINUTES),60) $(ARGS)

.PHONY: bench-peers
bench-peers: set-up ## nginx, SGLang's router, LiteLLM, Portkey and the gateway side by side (installs into .bench-peers)
	@exec $(PY) -m benchmarks.peers $(ARGS)

.PHONY: lint
lint: set-up ## ruff, mypy --strict, import contracts
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) .venv/bin/lint-imports

.PHONY: audit
audit: ## recompute every balance and every charge (DATA_DIR=… of a running stack)
	@sh .ci/set-up run
	@exec $(PY) -m gateway ledger audit

.PHONY: lock
lock: ## resolve all lock files anew (needs uv and the package index)
	$(COMPILE) pyproject.toml --extra embedded --extra export --extra bench --extra dev -U -o requirements.lock
	printf 'setuptools\nopenai\n' | $(COMPILE) pyproject.toml - --extra embedded --extra export -c requirements.lock -o requirements-run.lock
	echo setuptools | $(COMPILE) pyproject.toml - -c requirements.lock -o requirements-serve.lock
	printf 'gguf\nxllamacpp\n' | $(COMPILE) - --no-annotate -o requirements-engine.lock
	printf 'nvidia-pytriton==0.7.0\nnumpy==1.26.4\n%s\n' "$$(grep -o '^orjson==[^ ]*' requirements.lock)" | \
		$(COMPILE) - --no-deps --no-annotate -o requirements-triton.lock
	echo pip | $(COMPILE) - --no-annotate -o .ci/pip.lock
	for version in 0.1.0 0.3.1; do \
		echo "pareta==$$version" | $(COMPILE) - --no-annotate -o tests/clients/pareta-$$version.txt; done

.PHONY: lock-peers
lock-peers: ## pin the peers of bench-peers anew (PEERS_BEFORE=2026-11-09: nothing younger is taken)
	echo sglang-router | $(COMPILE) - --no-annotate -U --exclude-newer $(PEERS_BEFORE) -o benchmarks/peers/pins/sglang-router.txt
	echo 'litellm[proxy]!=1.82.7,!=1.82.8' | \
		$(COMPILE) - --no-annotate -U --exclude-newer $(PEERS_BEFORE) -o benchmarks/peers/pins/litellm.txt

.PHONY: clean
clean: ## remove caches, environments and installed peers (never data)
	rm -rf .venv .venv-engine .venv-triton .bench-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
