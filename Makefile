# Needs make, python3 (3.11 or newer) and python3-venv. `make demo` or `make test` may come first.
BIN := .venv/bin

# Where Python may not keep what it has compiled, each of some hundred processes that the tests start
# compiles torch and Ray anew: 7 s of a core for torch alone, where 3 would do.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env ffcv demo test lint types pytest hosts soak lock clean

env: .venv/.ffcv

.venv/.packages: pyproject.toml requirements.txt .ci/build_crop.py raycl/views/crop.c
	@sh .ci/env.sh packages
	@touch $@

# Tried once; `make ffcv` and `make test` try again.
.venv/.ffcv: .venv/.packages
	@sh .ci/env.sh ffcv
	@touch $@

ffcv: .venv/.packages
	@sh .ci/env.sh ffcv
	@touch .venv/.ffcv

demo: env
	$(BIN)/raycl demo

test: ffcv
	@$(MAKE) --no-print-directory -j3 lint types pytest

lint: .venv/.packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: .venv/.packages
	$(BIN)/mypy

# Two at a time, each with a cluster of its own: half of their time they wait for Ray. Of the tests
# on several hosts only `ray up`; the others are `make hosts`.
pytest: .venv/.packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow" --ignore=tests/cluster/test_hosts.py --ignore=tests/cluster/test_signals.py \
		--durations=25

# Needs root, iproute2, sshd and rsync: hosts are namespaces. Takes some minutes.
hosts: .venv/.packages
	RAYCL_NEEDS_HOSTS=1 $(BIN)/python -m pytest -s tests/cluster tests/train/test_growth.py

# Thirty random faults over one run; about half an hour.
soak: .venv/.packages
	RAYCL_NEEDS_HOSTS=1 $(BIN)/python -m pytest -s tests/cluster/soak.py

# Keeps the versions that still fit; for the newest: make lock UPGRADE=--upgrade
lock: .venv/.packages
	$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 \
		--extra dev --extra ffcv --extra timm --no-header --no-annotate $(UPGRADE) pyproject.toml -o requirements.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
