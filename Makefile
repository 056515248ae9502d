# Every target's ## comment is its line in `make help`.

.DEFAULT_GOAL := help
.NOTPARALLEL: # `make train-all archive serve` means in this order
.PHONY: help setup data train train-all archive describe index serve stop status evaluate register registry deploy readme test lint format bench soak tune doctor quality lock audit sbom licences clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

MODELS := $(sort $(patsubst archive/%/model-config.yaml,%,$(wildcard archive/*/model-config.yaml)))
MODEL ?=
VERSION ?=
ARGS ?=
# What the image installs.
SHIPPED := deploy/requirements.txt
# Vulnerabilities that `make audit` passes over, each with its reason.
AUDIT_IGNORED :=
# What `make index` writes, if it did.
INDEX_URI ?= $(wildcard data/milvus.db)
# What `make serve` reads from its environment.
export ENABLED_MODELS TOKEN_AUTH INFERENCE_HOST INFERENCE_PORT MANAGEMENT_PORT METRICS_HOST METRICS_PORT MODEL_STORE LOG_LOCATION \
	SIDECAR_PORT SIDECAR_HOST SIDECAR_TIMEOUT_S INDEX_URI RELOAD_API_KEY LOG_FORMAT OTEL_EXPORTER_OTLP_ENDPOINT

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Create .venv and install the exact versions of constraints.txt

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: expected Python 3.11, got $$($(PYTHON) --version); set PYTHON=<path>"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) .
	@touch $@

# The extras of pyproject.toml.
$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP_INSTALL) '.[$*]'
	@touch $@

train: $(VENV)/.installed ## Train one model: make train MODEL=deepfm [VERSION=v1] [ARGS='--epochs 5']
	@test -n "$(MODEL)" || { echo "error: which model? MODEL= one of: $(MODELS)"; exit 2; }
	@$(PY) -m scripts.train --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

train-all: $(VENV)/.installed ## Train every model, on its default data
	@$(PY) -m scripts.train $(if $(VERSION),--version $(VERSION))

archive: $(VENV)/.installed ## Package the newest version of every model [MODEL=deepfm] [VERSION=v1]
	$(PY) -m archive.package $(if $(MODEL),--model $(MODEL)) $(if $(VERSION),--version $(VERSION))

describe: $(VENV)/.installed ## Print an archive's signature, metrics and contents: MODEL=deepfm
	@test -n "$(MODEL)" || { echo "error: which model? make describe MODEL=deepfm"; exit 2; }
	@$(PY) -m archive.describe --model $(MODEL)

evaluate: $(VENV)/.installed ## Judge a version against the one that serves: MODEL=deepfm [VERSION=v2] [ARGS='--current-version v1']
	@test -n "$(MODEL)" || { echo "error: which model? make evaluate MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.evaluate --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

register: $(VENV)/.installed ## Put a trained model into the registry: MODEL=deepfm [VERSION=v1] [ARGS='--s3-bucket b']
	@test -n "$(MODEL)" || { echo "error: which model? make register MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.register_model --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

registry: $(VENV)/.installed ## List the registered versions [ARGS='--s3-bucket b']
	@$(PY) -m scripts.register_model list $(ARGS)

index: $(VENV)/.installed-index ## Write item vectors to Milvus [MODEL=two_tower] [ARGS='--uri http://host:19530']
	$(PY) -m scripts.index_items $(if $(MODEL),--model $(MODEL)) $(if $(VERSION),--version $(VERSION)) $(ARGS)

serve: $(VENV)/.installed ## Serve the archives on :8080, the sidecar on :8090 [ENABLED_MODELS=xgb,deepfm] [TOKEN_AUTH=1]
	@$(PY) -m scripts.serve

stop: $(VENV)/.installed ## Stop `make serve` from another terminal
	@$(PY) -m scripts.serve stop

status: $(VENV)/.installed ## Show what is served: versions and workers
	@$(PY) -m scripts.serve status

deploy: $(VENV)/.installed ## Let a registered version take over: MODEL=deepfm [VERSION=v1] [ARGS='--rollback']
	@test -n "$(MODEL)" || { echo "error: which model? make deploy MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.deploy --model $(MODEL) $(if $(VERSION),--version $(VERSION)) $(ARGS)

readme: $(VENV)/.installed ## Write the table of models into both READMEs, from archive/*/card.yaml
	@$(PY) -m scripts.readme

test: $(VENV)/.installed-dev ## Run the tests
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.installed-dev ## Run ruff, mypy, import-linter and shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/shellcheck scripts/run_training.sh .ci/run .ci/quickstart

format: $(VENV)/.installed-dev ## Let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

soak: $(VENV)/.installed ## Serve under mixed load with switches and killed workers: MINUTES=30 [ENABLED_MODELS=xgb,dssm]
	$(PY) -m bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ENABLED_MODELS),--models $(ENABLED_MODELS)) $(ARGS)

bench: $(VENV)/.installed ## Measure requests/s and latency beside the alternatives
	$(PY) -m bench.serving $(ARGS)

tune: $(VENV)/.installed ## Measure a model's settings here, keep the best: MODEL=deepfm [ARGS='--requests file']
	@test -n "$(MODEL)" || { echo "error: which model? make tune MODEL=deepfm"; exit 2; }
	@$(PY) -m scripts.tune --model $(MODEL) $(ARGS)

doctor: $(VENV)/.installed ## Check this machine and the configuration, each finding with its mend
	@$(PY) -m scripts.doctor

quality: $(VENV)/.installed-dev ## Print every model's metrics beside baseline, bar and oracle [DATA=folder]
	$(PY) -m bench.quality $(if $(DATA),--data $(DATA)) $(ARGS)

lock: $(VENV)/.installed-audit ## Pin what ships in the image, with hashes, after a change of dependencies [UV_FIND_LINKS=folder]
	$(VENV)/bin/uv pip compile --quiet --no-config --constraint constraints.txt --extra otel \
		--generate-hashes --only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		$(if $(UV_FIND_LINKS),,--torch-backend cpu) --no-annotate --custom-compile-command 'make lock' \
		--output-file $(SHIPPED) pyproject.toml

audit: $(VENV)/.installed-audit ## Look for known vulnerabilities in all that is installed
	@$(VENV)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt \
		$(AUDIT_IGNORED:%=--ignore-vuln %) || \
		{ echo "error: something was found, or could not be looked up: PyPI's JSON API has the advisories, a mirror seldom"; exit 1; }

sbom: $(VENV)/.installed-audit ## Write the bill of materials of what ships in the image: build/sbom.cdx.json
	@mkdir -p build
	@$(VENV)/bin/cyclonedx-py requirements $(SHIPPED) --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json

licences: $(VENV)/.installed-audit ## List the licences of what ships in the image
	@$(VENV)/bin/pip-licenses --from mixed --order license --packages $$(sed -n 's/==.*//p' $(SHIPPED))

clean: ## Remove what training, packaging and tests wrote; keep data/ and .venv
	rm -rf artifacts logs model-store/*.mar bench/results build *.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
