.PHONY: demo test test-slow faults check format
.DEFAULT_GOAL := test
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

demo: $(READY)  ## make the data, train, evaluate, predict on real images
	$(BIN)/metaformer data demo data/demo
	$(BIN)/metaformer train demo/classify --data.root data/demo/classify --out runs/demo --resume auto
	$(BIN)/metaformer evaluate runs/demo --data data/demo/classify
	$(BIN)/metaformer predict runs/demo data/demo/classify/val/7 --out runs/demo/predictions --pictures
	$(BIN)/metaformer train demo/segment --data.root data/demo/segment --model.checkpoint runs/demo/best/model.safetensors --out runs/demo-segment --resume auto
	$(BIN)/metaformer evaluate runs/demo-segment
	$(BIN)/metaformer evaluate runs/demo-segment --scales 0.75,1,1.25 --flip
	$(BIN)/metaformer predict runs/demo-segment data/demo/segment/images/validation --out runs/demo-segment/predictions --pictures
	@echo "Look at runs/demo/report.html and runs/demo-segment/report.html"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY)  ## compilation and other tests that take minutes
	$(BIN)/python -m pytest -m slow

faults: $(READY)  ## break runs on purpose, as often as the README says: 25 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m faults --full -n 3 --dist worksteal

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
	@if command -v uv >/dev/null; then \
	  uv venv --allow-existing --python $(PYTHON) .venv && uv pip install --python .venv -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
