# make demo   install everything, make pictures of a real person, say where they are
# make test   install everything, run the tests
# make test-ray  install Ray, and test `idgen synthesize --engine ray` on a cluster of two workers
# make check  lint and all tests: what CI runs
# make docs   build the reference of the library from its docstrings
# make clean  remove what the others made; .venv stays (make VENV=... for another one)

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.idgen-is-installed
PICTURES := demo/pictures
WORKERS ?= 2

.PHONY: setup demo test test-ray lint check docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/install
	bash .ci/install "$(VENV)"
	@touch $@

demo: $(READY)
	@mkdir -p demo
	@$(BIN)/python -c "from PIL import Image; from skimage import data; \
	  Image.fromarray(data.astronaut()).save('demo/astronaut.png')"  # Eileen Collins, NASA, public domain
	$(BIN)/idgen generate --face demo/astronaut.png --prompt "a photo of a smiling woman" --out $(PICTURES)
	@echo "The pictures, with the photo beside them: $(CURDIR)/$(PICTURES)/sheet.png"

# As many processes as cores, of one thread each: more would wait for each other. A process that has no tests left
# takes half of those that another has still to run.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# By itself, for a cluster does not start on busy cores. Where Ray is not to be had its tests skip.
test-ray: $(READY)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[ray]' || \
	  echo "Ray cannot be installed here: its tests are skipped" >&2
	IDGEN_TEST_RAY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/test_synthesize_engines.py -k cluster

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test test-ray

docs: $(READY)
	$(BIN)/python docs/reference.py --out build/reference

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
