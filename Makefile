# make train   sets up .venv, builds the extension, trains on synthetic faces
# make test    the same set-up, then the tests
# make gpu     with an NVIDIA GPU: the same set-up, the tests in tests/gpu, alone and under compute-sanitizer, benchmarks
#              (-k: each part even where one before it fails)
# Set-up is done once, and again only for what changed. PYTHON=python3.12 makes .venv with another Python; VENV=python3
# takes that interpreter with the packages it has, and only builds the extension.
PYTHON ?= python3
VENV := .venv/bin/python
READY := $(if $(filter .venv/bin/python,$(VENV)),.venv/built,extension)
GPU_BENCHMARKS := ops attention_block inference predictor training

.NOTPARALLEL:
.PHONY: train test gpu gpu-tests gpu-sanitizer gpu-benchmarks extension
train: $(READY)
	$(VENV) scripts/train.py

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV) -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

ifneq (,$(filter gpu%,$(MAKECMDGOALS)))
ifeq (,$(filter GPU,$(shell nvidia-smi -L 2>/dev/null)))
$(error make gpu needs an NVIDIA GPU, and nvidia-smi lists none here)
endif
endif

# Tests that see IACT_SMALL_TESTS use small cases: the sanitizer slows what it watches, our own kernels, 10-50 times.
SANITIZE := IACT_SMALL_TESTS=1 PATH="$$PATH:/usr/local/cuda/bin" compute-sanitizer --error-exitcode 1 \
	--kernel-name kns=iact --report-api-errors no

gpu: gpu-tests gpu-sanitizer gpu-benchmarks

gpu-tests: $(READY)
	$(VENV) -m pytest -q tests/gpu

gpu-sanitizer: $(READY)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZE) --tool memcheck $(VENV) -m pytest -q tests/gpu
	$(SANITIZE) --tool racecheck $(VENV) -m pytest -q tests/gpu

gpu-benchmarks: $(READY)
	status=0; for name in $(GPU_BENCHMARKS); do \
	  $(VENV) benchmarks/bench_$$name.py --device cuda --out benchmarks/results || status=1; done; \
	$(VENV) benchmarks/tables.py && exit $$status

extension:
	$(VENV) setup.py build_ext

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet 'setuptools>=77' wheel
	$(VENV) -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@

.venv/built: .venv/installed setup.py $(wildcard csrc/*)
	$(VENV) setup.py build_ext
	touch $@
