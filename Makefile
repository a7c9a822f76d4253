.PHONY: demo docs docs-serve test test-slow test-ray test-page test-clients test-oracles faults fuzz check format
.DEFAULT_GOAL := test
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
INSTALL = if command -v uv >/dev/null; then uv pip install --python .venv -c constraints.txt $(1); \
	else $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt $(1); fi
# by default every demo recipe, the longest first
TASK ?= $(shell sed -n 's|^ *name="demo/\(.*\)",|\1|p' src/metaformer/recipes/demo.py | tac)
CLASSIFIER := runs/demo-classify
# validation images of the demo data that are predicted on: of one class, or a fifth of the scenes
VAL_classify := val/7
VAL_multilabel := val/*[05].jpg
VAL_segment := images/validation/*[05].jpg
VAL_detect := val2017/*[05].jpg
# tasks but the first learn side by side, a thread each: the longest has a core, the others share one
LONGEST := segment
NICE = $(if $(filter $(LONGEST),$*),,nice -n 3)
# their lines begin with their names
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
NAMED = 2>&1 | sed -u 's/^/$*: /'

demo:  ## make the data, train, predict on real images, in six minutes; make demo TASK=detect does one task
	@$(MAKE) --no-print-directory $(READY) data/demo/.complete
	@echo "Training $(words $(TASK)) networks; meanwhile look at data/demo/overview.jpg"
	@$(MAKE) --no-print-directory $(CLASSIFIER)/.complete
	@$(MAKE) --no-print-directory -j$(words $(TASK)) $(TASK:%=demo-%)
	@printf '\nLook at:\n$(TASK:%=  runs/demo-%/report.html\n)Try them on your own images:\n'
	@echo "  $(BIN)/metaformer serve $(TASK:%=runs/demo-%)"

demo-%: $(CLASSIFIER)/.complete
	@$(if $(filter classify,$*),,$(NICE) $(BIN)/metaformer train demo/$* --data.root data/demo/$* \
	  --model.checkpoint $(CLASSIFIER)/best/model.safetensors --runtime.threads 1 --out runs/demo-$* --resume auto $(NAMED))
	@$(NICE) $(BIN)/metaformer predict runs/demo-$* data/demo/$*/$(or $(VAL_$*),val) --out runs/demo-$*/predictions --draw $(NAMED)

# the others begin with its weights; its report is there long before it is done
$(CLASSIFIER)/.complete: data/demo/.complete
	@$(BIN)/metaformer train demo/classify --data.root data/demo/classify --out $(CLASSIFIER) --resume auto
	@touch $@

data/demo/.complete: | $(READY)
	@$(BIN)/metaformer data demo data/demo
	@touch $@

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(READY)  ## compilation and other tests that take minutes
	$(BIN)/python -m pytest -m slow

test-ray: $(READY)  ## the example for many machines; installs Ray, 80 MB, into the environment
	@$(call INSTALL,'ray[data]==2.60.0')
	$(BIN)/python -m pytest -n 0 -m ray tests/inference/test_ray.py

BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
test-page: $(READY)  ## the page of `metaformer serve` in Chromium; installs Playwright, 45 MB, into the environment
	@test -n "$(BROWSER)" || { echo "No browser: install Chromium, such as with 'apt-get install chromium'"; exit 1; }
	@$(call INSTALL,playwright)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m page tests/deploy/server/test_page.py

test-clients: $(READY)  ## schemathesis and tritonclient against a server; they do not fit the versions of constraints.txt
	@$(PYTHON) -m venv .venv/clients
	.venv/clients/bin/pip install --disable-pip-version-check -q 'schemathesis==4.32.5' 'tritonclient[http]==2.73.0'
	OMP_NUM_THREADS=1 METAFORMER_CLIENTS=$(CURDIR)/.venv/clients/bin $(BIN)/python -m pytest -n 0 -m clients tests/deploy/server

test-oracles: $(READY)  ## maps against grad-cam and openerf, exported files in OpenVINO's Model API; installs them, 220 MB
	@$(call INSTALL,grad-cam==1.5.7 openerf==0.6.1 openvino-model-api==0.4.7)
	$(BIN)/python -m pytest -n 0 -m oracle tests/attribution tests/deploy/export

faults: $(READY)  ## break runs on purpose, as often as docs/reliability.md says: a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m faults --full -n 3 --dist worksteal

fuzz: $(READY)  ## change the files of every door for a minute each: a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults/test_fuzz.py -m faults --full --door-seconds 60 -n 3 --dist worksteal

docs: $(READY)  ## the site, in build/site, and a look for dead links; installs Zensical, 40 MB, into the environment
	@$(call INSTALL,zensical==0.0.73 mkdocstrings-python==2.0.11)
	$(BIN)/python docs/site.py build/docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/site.py --check build/site

docs-serve: docs  ## the same at http://127.0.0.1:8008
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8008

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv: PyTorch and what demo and tests need, about 7 GB"
	@if command -v uv >/dev/null; then \
	  uv venv --allow-existing --python $(PYTHON) .venv && uv pip install --python .venv -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && $(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
