# The ## comment of each target is its line in `make help`, which must fit 80 columns.

.DEFAULT_GOAL := help
.NOTPARALLEL: # `make train-all archive serve` runs them in this order
.PHONY: help setup data inspect train train-all archive describe index serve stop status evaluate register registry deploy readme test lint format bench soak chaos tune doctor quality lock audit sbom licences clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

MODELS := $(sort $(patsubst archive/%/model-config.yaml,%,$(wildcard archive/*/model-config.yaml)))
MODEL ?=
VERSION ?=
ARGS ?=
# The packages of the container image.
SHIPPED := deploy/requirements.txt
# Vulnerabilities for `make audit` to ignore, each with its reason.
AUDIT_IGNORED :=
# The item index, once `make index` has written it.
INDEX_URI ?= $(wildcard data/milvus.db)
# Environment variables of `make serve`.
export ENABLED_MODELS TOKEN_AUTH INFERENCE_HOST INFERENCE_PORT MANAGEMENT_PORT METRICS_HOST METRICS_PORT MODEL_STORE LOG_LOCATION \
	SIDECAR_PORT SIDECAR_HOST SIDECAR_TIMEOUT_S INDEX_URI RELOAD_API_KEY LOG_FORMAT OTEL_EXPORTER_OTLP_ENDPOINT

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Install the exact versions of constraints.txt into .venv

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: expected Python 3.11, got $$($(PYTHON) --version); set PYTHON=<path>"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) .
	@touch $@

# One target for each extra of pyproject.toml.
$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP_INSTALL) '.[$*]'
	@touch $@

inspect: $(VENV)/.installed ## Propose commands that train on a data set: DATA=clicks.csv
	@$(PY) -m scripts.inspect_data $(if $(DATA),'$(DATA)') $(ARGS)

train: $(VENV)/.installed ## Train a model: MODEL=deepfm [VERSION=v1] [ARGS='--epochs 5']
	@test -n "$(MODEL)" || { echo "error: no model given; set MODEL to one of: $(MODELS)"; exit 2; }
	@$(PY) -m scripts.train --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

train-all: $(VENV)/.installed ## Train every model on its default data
	@$(PY) -m scripts.train $(if $(VERSION),--version $(VERSION))

archive: $(VENV)/.installed ## Package the newest versions [MODEL=deepfm] [VERSION=v1]
	$(PY) -m archive.package $(if $(MODEL),--model $(MODEL)) $(if $(VERSION),--version $(VERSION))

describe: $(VENV)/.installed ## Print an archive's signature and metrics: MODEL=deepfm
	@test -n "$(MODEL)" || { echo "error: no model given; example: make describe MODEL=deepfm"; exit 2; }
	@$(PY) -m archive.describe --model $(MODEL) $(ARGS)

evaluate: $(VENV)/.installed ## Judge a version against what serves: MODEL=deepfm [VERSION=v2]
	@test -n "$(MODEL)" || { echo "error: no model given; example: make evaluate MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.evaluate --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

register: $(VENV)/.installed ## Add a trained model to the registry: MODEL=deepfm [VERSION=v1]
	@test -n "$(MODEL)" || { echo "error: no model given; example: make register MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.register_model --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

registry: $(VENV)/.installed ## List the registered versions
	@$(PY) -m scripts.register_model list $(ARGS)

index: $(VENV)/.installed-index ## Write item vectors to Milvus [MODEL=two_tower] [VERSION=v1]
	$(PY) -m scripts.index_items $(if $(MODEL),--model $(MODEL)) $(if $(VERSION),--version $(VERSION)) $(ARGS)

serve: $(VENV)/.installed ## Serve archives on :8080, sidecar on :8090 [ENABLED_MODELS=xgb]
	@$(PY) -m scripts.serve

stop: $(VENV)/.installed ## Stop `make serve` from another terminal
	@$(PY) -m scripts.serve stop

status: $(VENV)/.installed ## List the models being served, with their versions and workers
	@$(PY) -m scripts.serve status

deploy: $(VENV)/.installed ## Switch running servers to a version: MODEL=deepfm [VERSION=v1]
	@test -n "$(MODEL)" || { echo "error: no model given; example: make deploy MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.deploy --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

readme: $(VENV)/.installed ## Write the model tables of the READMEs from archive/*/card.yaml
	@$(PY) -m scripts.readme

test: $(VENV)/.installed-dev ## Run the tests, two files at a time [ARGS='-n 0 tests/archive']
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev ## Run ruff, mypy, import-linter and shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/shellcheck scripts/run_training.sh .ci/run .ci/quickstart

format: $(VENV)/.installed-dev ## Format the code and apply ruff's automatic fixes
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

soak: $(VENV)/.installed ## Run a load test with version switches and kills [MINUTES=30]
	$(PY) -m bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ENABLED_MODELS),--models $(ENABLED_MODELS)) $(ARGS)

chaos: $(VENV)/.installed-index ## Kill, hang, fill up and feed rubbish; count what callers lose
	$(PY) -m bench.chaos $(ARGS)

bench: $(VENV)/.installed ## Compare throughput and latency with the alternatives
	$(PY) -m bench.serving $(ARGS)

tune: $(VENV)/.installed ## Find the best settings of a model on this machine: MODEL=deepfm
	@test -n "$(MODEL)" || { echo "error: no model given; example: make tune MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.tune --model $(MODEL) $(ARGS)

doctor: $(VENV)/.installed ## Check this machine and its configuration; suggest fixes
	@$(PY) -m scripts.doctor

quality: $(VENV)/.installed-dev ## Compare each model with its baseline and bar [DATA=folder]
	$(PY) -m bench.quality $(if $(DATA),--data $(DATA)) $(ARGS)

lock: $(VENV)/.installed-audit ## Pin the image's packages with hashes [UV_FIND_LINKS=folder]
	$(VENV)/bin/uv pip compile --quiet --no-config --constraint constraints.txt --extra otel \
		--generate-hashes --only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		$(if $(UV_FIND_LINKS),,--torch-backend cpu) --no-annotate --custom-compile-command 'make lock' \
		--output-file $(SHIPPED) pyproject.toml

audit: $(VENV)/.installed-audit ## Check the installed packages for known vulnerabilities
	@$(VENV)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt \
		$(AUDIT_IGNORED:%=--ignore-vuln %) || \
		{ echo "error: found a vulnerability, or failed to look up a package; advisories come from PyPI's JSON API, which few mirrors offer"; exit 1; }

sbom: $(VENV)/.installed-audit ## Write the image's bill of materials to build/sbom.cdx.json
	@mkdir -p build
	@$(VENV)/bin/cyclonedx-py requirements $(SHIPPED) --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json

licences: $(VENV)/.installed-audit ## List the licenses of the image's packages
	@$(VENV)/bin/pip-licenses --from mixed --order license --packages $$(sed -n 's/==.*//p' $(SHIPPED))

clean: ## Delete training, packaging and test output; keep data/ and .venv
	rm -rf artifacts logs model-store/*.mar bench/results build *.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
