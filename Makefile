# make demo    environment, then lesions drawn on a synthetic procedure: demo.mp4
# make test    environment, lint, types, tests: what CI runs
# make bench   latency and start-up on this machine; make bench-check: whether anything got worse than is stored
# A target that has run once works offline.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench bench-check picture clean

demo: .venv/.run
	$(BIN)/mcdrl-rt stream --input phantom:size=1280x720,frames=450,seed=15 --output demo.mp4

test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: .venv/.slow
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/latency.py

bench-check: .venv/.dev
	$(BIN)/python benchmarks/check.py

picture: .venv/.run
	$(BIN)/python benchmarks/picture.py preview.jpg

.venv/.run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,dev]'
	touch $@ .venv/.run

.venv/.slow: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster]'
	touch $@

clean:
	rm -rf .venv build dist demo.mp4 .pytest_cache .mypy_cache .ruff_cache .hypothesis
