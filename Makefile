# The verbs of this project; continuous integration runs the same ones (.ci/run).
# PYTHON=python3.12 chooses the interpreter of a new environment, ARGS is passed on by test, conformance, fuzz,
# docs, simulate, mutate, soak, soak-faults, bench and compare; MINUTES=60 says for how long to simulate or soak.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv fmt check audit test conformance fuzz simulate mutate docs soak soak-faults demo bench compare build-check clean

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
ARGS ?=
MINUTES ?=
SEEDS ?=
SERVER ?= seaweedfs
START ?= 0

VENV := .venv
BENCH_VENV := .venv-bench
COMPARE_VENV := .venv-compare
READY := .ready
BIN := $(VENV)/bin
# Two workers for each core take whole files of tests, in the order of conftest.py; a later -n in ARGS decides.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# $(call install,FOLDER,EXTRA,CONSTRAINTS): the stamp goes first and comes back last, so that an environment
# whose making failed or was interrupted is made again.
define install
	@echo "==> $(1): s3torch[$(2)] on $(PYTHON)"
	@rm -f $(1)/$(READY)
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install -q -c $(3) -e '.[$(2)]'
	@touch $(1)/$(READY)
endef

# The extra dev holds test and lint, test holds demo, demo holds local: one environment for all but the other clients, and
# the other connector, before which the drop-in refuses to stand.
$(VENV)/$(READY): pyproject.toml constraints.txt
	$(call install,$(VENV),dev,constraints.txt)

$(BENCH_VENV)/$(READY): pyproject.toml constraints-bench.txt
	$(call install,$(BENCH_VENV),bench,constraints-bench.txt)

$(COMPARE_VENV)/$(READY): pyproject.toml constraints.txt
	$(call install,$(COMPARE_VENV),compare,constraints.txt)

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/$(READY)  ## make .venv, or bring it up to date

fmt: $(VENV)/$(READY)  ## format, and fix what the linter can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: $(VENV)/$(READY)  ## formatting, lint and types; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy src benchmarks $(wildcard tests/typing)

audit: $(VENV)/$(READY)  ## what is installed fits together, is declared, and may be used; asks no network
	$(BIN)/python -m pip check
	$(BIN)/python -m pytest -q tests/test_dependencies.py

# Workers, and the hundreds of processes that tests start, would compile the same modules again and again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/$(READY)  ## run the tests and the documentation's code blocks
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

conformance: $(VENV)/$(READY)  ## check other servers: SERVER="seaweedfs swift moto ceph juicefs localstack ministack", or all
	$(BIN)/python -m tests.servers $(SERVER) $(ARGS)

fuzz: $(VENV)/$(READY)  ## feed damaged input to the parsers, for a minute or ARGS="--seconds 600 --seed 1"
	$(BIN)/python -m tests.fuzz $(ARGS)

simulate: $(VENV)/$(READY)  ## run random programs in which several things happen at once: MINUTES=1, or SEEDS=10000 START=0
	$(BIN)/python -m tests.simulate --start $(START) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

mutate: $(VENV)/$(READY)  ## make small mistakes in the library and see whether the tests notice: ARGS="--sample 100 --seed 1"
	$(BIN)/python -m tests.mutation $(ARGS)

docs: $(VENV)/$(READY)  ## run the code blocks of README.md and docs/ only
	$(BIN)/python -m pytest README.md docs $(ARGS)

soak: $(VENV)/$(READY)  ## the long tests, then train from a real server that is killed, reset and given other keys, for MINUTES=10
	$(BIN)/python -m pytest $(PARALLEL) -m soak
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(ARGS)

soak-faults: $(VENV)/$(READY)  ## read 100,000 objects under random faults
	$(BIN)/python -m tests.soak.faults $(ARGS)

demo: $(VENV)/$(READY)  ## train from a local S3 server, start to finish
	$(BIN)/s3torch demo

bench: $(BENCH_VENV)/$(READY)  ## measure against other clients
	$(BENCH_VENV)/bin/python -m benchmarks $(ARGS)

compare: $(COMPARE_VENV)/$(READY)  ## run the tests that s3torchconnector must fail, against it
	S3TORCH_TEST_CONNECTOR=s3torchconnector $(COMPARE_VENV)/bin/python -m pytest tests/compare tests/compat $(ARGS)

# What a user installs is the wheel, not the source tree: is everything in it?
WHEEL := build/wheel
UNPACKED := build/wheel-check

define WHEEL_CHECK
import importlib.metadata, pathlib, sys
import s3torch

home = pathlib.Path(s3torch.__file__).parent
installed = pathlib.Path(sys.argv[1]).resolve()
distribution = importlib.metadata.distribution("s3torch")
files = {path.name for path in distribution.files or ()}
modules = {path.parts[0] for path in distribution.files or () if path.suffix == ".py"}
problems = [
    message
    for message, fine in (
        (f"s3torch was imported from {home}", home.parent == installed),
        ("py.typed is missing", (home / "py.typed").is_file()),
        (f"the wheel brings {sorted(modules)}, not s3torch alone", modules == {"s3torch"}),
        *(
            (f"the {place} of {name} is missing", (home / "compat" / "packages" / place.format(name)).is_file())
            for name in ("s3torchconnector", "s3torchconnectorclient")
            for place in ("{}/py.typed", "{}-1.5.0.dist-info/METADATA")
        ),
        ("LICENSE or NOTICE is missing", {"LICENSE", "NOTICE"} <= files),
        (f"metadata says {distribution.version}", distribution.version == s3torch.__version__),
        *((f"s3torch.{name} is missing", hasattr(s3torch, name)) for name in s3torch.__all__),
    )
    if not fine
]
for entry in distribution.entry_points:
    entry.load()
print(f"s3torch {distribution.version} from its wheel: {len(s3torch.__all__)} public names")
sys.exit("\n".join(problems) or None)
endef
export WHEEL_CHECK

build-check: $(VENV)/$(READY)  ## build the wheel and try what is in it
	@echo "==> $(WHEEL): build"
	@rm -rf $(WHEEL) $(UNPACKED)
	@$(BIN)/python -m pip wheel -q --no-deps -w $(WHEEL) .
	@$(BIN)/python -m pip install -q --no-deps --target $(UNPACKED) $(WHEEL)/s3torch-*.whl
	@echo "==> $(UNPACKED): import, public names, command line"
	@PYTHONPATH=$(UNPACKED) $(BIN)/python -c "$$WHEEL_CHECK" $(UNPACKED)
	@PYTHONPATH=$(UNPACKED) $(BIN)/python -m s3torch --help >/dev/null
	@PYTHONPATH=$(UNPACKED) $(BIN)/python -m s3torch bench --help >/dev/null
	@PYTHONPATH=$(UNPACKED) $(BIN)/python -m s3torch.compat --status >/dev/null

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) $(BENCH_VENV) $(COMPARE_VENV) .venv-servers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
