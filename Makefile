# make train   sets up .venv, builds the extension, trains on synthetic faces
# make test    the same set-up, then the tests
# Set-up is done once, and again only for what changed. PYTHON=python3.12 makes .venv with another Python.
PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: train test
train: .venv/built
	$(VENV) scripts/train.py

test: .venv/built
	OMP_NUM_THREADS=1 $(VENV) -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet 'setuptools>=77' wheel
	$(VENV) -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

.venv/built: .venv/installed setup.py $(wildcard csrc/*)
	$(VENV) setup.py build_ext
	touch $@
