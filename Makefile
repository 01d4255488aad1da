# make demo   the whole way once: a local enclave, a verified client, a refused one
# make test   linters, C tests (also under sanitizers), short fuzzing, a soak of a minute, proofs, Python,
#             interop and faults, mutants
#
# make bench  the package against its peers: docs/benchmarks.md and .png, in half an hour (or
#             OPTIONS=--quick; a part is printed only: OPTIONS="--only get,rps --on rust"; a wheel beside
#             the source tree: OPTIONS="--wheel FILE")
# make test-fleet  long jobs on Dask, Ray and Spark, with the number of channels counted
# make test-llamaindex  what docs/integrations.md says of LlamaIndex, in an environment of its own
# make site   the documentation as a site with search, in build/site
# make screenshots  the site and the executed notebook in Chromium at three widths; pictures in build/screenshots
# make soak   mixed traffic through every fault: docs/reliability.md (MINUTES=10 SEED=1)
# make wheels          sdist and wheels that carry their libraries, in dist/ (OPTIONS="--only NAME")
# make test-wheels     installs them in Debian releases of their own and tests them there (as root;
#                      ROOTS="NAME…")
# make test-browser    the wheel for Pyodide, and its tests under node and in Chromium (as root, on Debian)
# make reproduce-wheels  builds a wheel twice from nothing: the same bytes? (WHEELS="NAME…")
#
# All install what is missing: Debian packages (.ci/system-packages) and a virtualenv in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 10
SEED ?= 1
WORKERS ?= 2
C_SOURCES := $(wildcard csrc/*/*.c csrc/*/*.h)
C_THREADS := test_net test_loop test_enclave test_workload test_channel test_channel_slots \
    test_slow_readers test_threads test_fork test_together test_attest
# pytest compiles the plugins of an environment with their asserts rewritten, and hundreds of processes
# of the tests start Python: bytecode is kept also where the environment asks Python not to.
export PYTHONDONTWRITEBYTECODE :=
export PYTHON

.PHONY: site screenshots wheels test-browser test-wheels reproduce-wheels demo test bench soak instructions emulated lint pyright test-c test-san test-fleet test-llamaindex test-fuzz test-python test-others mutants torture clean
demo: build/installed
	$(BIN)/python docs/examples/demo.py

# The Python tests mostly wait, and the others mostly compute: side by side they fill the two
# processors of a small machine. `make test-python` and `make test-others` run one half. The Python
# tests are the longer half, so they are shared by two processes (WORKERS=0: none but pytest's own).
test: build/installed-test
	$(MAKE) -C tests/c -j2 --silent lib
	$(MAKE) -j2 test-python test-others

test-others: build/installed-test
	$(MAKE) -j1 lint
	$(MAKE) -j1 test-c
	$(MAKE) -j1 test-san
	$(MAKE) -j1 -C tests/torture --silent check
	$(MAKE) -j1 -C tests/proof --silent
	$(MAKE) -j1 mutants
	$(MAKE) -j1 instructions

$(BIN)/pip:
	.ci/system-packages build
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

build/installed: $(BIN)/pip setup.py pyproject.toml $(C_SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable '.[testing]' --group demo
	@mkdir -p build && touch $@

build/installed-test: build/installed pyproject.toml
	.ci/system-packages test
	$(BIN)/pip install --quiet --group test --group fleet --group lint --group docs --group integrations
	@touch $@

lint: build/installed-test
	clang-format --dry-run --Werror csrc/*/*.[ch] $(wildcard tests/c/*.[ch] tests/fuzz/*.[ch] tests/proof/*.[ch] tests/torture/*.[ch])
	ls csrc/*/*.c | xargs -P 2 -n 8 .ci/clang-tidy
	ls csrc/*/*.c | xargs -P 2 -n 40 .ci/thread-safety
	$(MAKE) -C tests/c --silent portable
	$(MAKE) -C tests/c --silent macos PYTHON=$(CURDIR)/$(BIN)/python
	$(BIN)/ruff format --check enclavia pytest_enclavia tests docs packaging setup.py
	$(BIN)/ruff check enclavia pytest_enclavia tests docs packaging setup.py
	$(BIN)/mypy
	MYPYPATH=docs/site $(BIN)/mypy docs/examples/*.py docs/site/*.py
	$(MAKE) pyright

# The second type checker that editors have, over what users copy: the examples, and each code block
# of the documentation, in lines of its page.
pyright: build/installed-test
	$(BIN)/python tests/support/typed_blocks.py build/typed
	$(BIN)/basedpyright --project docs/site/pyrightconfig.json

# The C tests: plain, under AddressSanitizer and UndefinedBehaviorSanitizer, and those that have
# threads under ThreadSanitizer.
test-c: build/installed-test
	$(MAKE) -C tests/c -j2 --silent check
	$(MAKE) -C tests/c --silent neon PYTHON=$(CURDIR)/$(BIN)/python
	$(MAKE) -C tests/c -j2 --silent check SAN=1
	$(MAKE) -C tests/c -j2 --silent check TSAN=1 TESTS='$(C_THREADS)'

# The same extension under the sanitizers, driven from Python.
test-san: build/installed-test
	.ci/python-san tests/python/channel/test_channel.py $(wildcard tests/python/testing/test_enclave*.py) \
	    tests/python/core/test_buffers.py

# Jobs of 10 000 rows on each engine; `make test` has them with 200.
test-fleet: build/installed-test
	FLEET_ROWS=10000 $(BIN)/python -m pytest tests/fleet

# LlamaIndex needs another release of the OpenAI SDK than the other tests have.
build/llamaindex/installed: $(BIN)/pip pyproject.toml
	$(PYTHON) -m venv build/llamaindex
	build/llamaindex/bin/pip install --quiet --upgrade pip
	build/llamaindex/bin/pip install --quiet --group llamaindex
	@touch $@

test-llamaindex: build/installed-test build/llamaindex/installed
	ENCLAVIA_LLAMAINDEX_PYTHON=$(CURDIR)/build/llamaindex/bin/python \
	    $(BIN)/python -m pytest tests/python/integrations/test_programs.py -k llama_index

test-python: build/installed-test
	$(MAKE) -C tests/c -j2 --silent lib
	$(BIN)/python -m pytest -n $(WORKERS)
	$(BIN)/python -m pytest tests/fleet

build/installed-site: build/installed pyproject.toml
	$(BIN)/pip install --quiet --group docs
	@touch $@

# Every warning, such as a link that leads nowhere, is an error. SITE_URL=https://…/ makes links in llms.txt absolute.
site: build/installed-site
	ENCLAVIA_SITE_URL=$(SITE_URL) $(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going \
	    --builder html --conf-dir docs/site --doctree-dir build/site-doctrees . build/site
	@echo build/site/index.html

build/installed-screenshots: build/installed-site pyproject.toml
	.ci/system-packages screenshots
	$(BIN)/pip install --quiet --group screenshots
	@touch $@

# Fails on an error in the browser's console, and on what is beyond the edge of a window. Not a part of CI, which has no browser.
screenshots: build/installed-screenshots site
	$(BIN)/python -m tests.screenshots

# Every check of the verification path removed and turned around; fails where no test notices one.
mutants: build/installed-test
	$(BIN)/python -m tests.mutants $(OPTIONS)

# Every allocation failing in turn, which takes longer than CI has.
torture: build/installed-test
	$(MAKE) -C tests/torture -j2 --silent

bench: build/installed-test
	.ci/system-packages bench
	$(BIN)/pip install --quiet --group bench
	$(BIN)/python -m tests.bench $(OPTIONS)

soak: build/installed-test
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

# Fails where the client executes over 5 % more instructions than the last kept (OPTIONS=--keep).
instructions: build/installed-test
	$(BIN)/python -m tests.bench.instructions $(OPTIONS)

# The array codec on x86-64 and arm64, its blocks and the plain loop, under an emulator.
emulated: build/installed-test
	$(BIN)/python -m tests.bench.emulated $(OPTIONS)

build/installed-wheels: $(BIN)/pip pyproject.toml
	.ci/system-packages wheels
	$(BIN)/pip install --quiet --group wheels
	@mkdir -p build && touch $@

wheels: build/installed-wheels
	$(BIN)/python packaging/wheels.py $(OPTIONS)

test-wheels: wheels
	.ci/system-packages roots
	$(BIN)/python packaging/roots.py $(ROOTS)

# Not part of `make test`: the toolchain is that of Debian's development release, which moves on.
test-browser: build/installed-wheels build/installed-test
	.ci/system-packages browser
	$(BIN)/pip install --quiet --group browser
	$(BIN)/python packaging/browser.py
	$(BIN)/python -m pytest tests/browser

reproduce-wheels: build/installed-wheels
	$(BIN)/python packaging/reproduce.py $(WHEELS)

clean:
	rm -rf build dist $(VENV) enclavia/*.so *.egg-info
