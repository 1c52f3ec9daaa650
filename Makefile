# make train         trains, evaluates and exports a ResNet-20 on handwritten digits
# make test          runs the tests, except those marked as slow
# make test-clients  runs the tests with browsers, ONNX, OpenVINO, MediaPipe, wheels and
#                    notebooks, and those with networks of full size
# make test-full     runs all tests except Bazel's, including the slow ones
# make attack        tries bad inputs, kills, full disks and races; PART=ci tries a part
# make test-arm      tests LiteRT on an emulated ARM CPU; needs Debian 12
# make bazel         checks the BUILD files with buildifier (from npm) and Debian's Bazel
# make lint          checks format, lint rules, types and the workflow of the public forge
# make lock          updates the lock files (requirements*.lock); needs uv
# make dist          builds the sdist and the wheel in dist/, and tries them
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-clients test-full attack test-arm bazel buildifier lint lock dist clean

train: $(VENV)/ready
	@$(BIN)/python -m keras_resnet.train --strategy=mirrored --model_dir=runs/demo
	@$(BIN)/python -m keras_resnet.evaluate --model=runs/demo
	@$(BIN)/python -m export --model=runs/demo --output=artifacts/demo

# The tests start Python often, so bytecode files save time.
test test-clients test-full attack: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-clients: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "(clients or slow) and not full"

test-full: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not bazel and not attack"

# The whole attack writes its outcomes to a CSV file.
PART ?= all
attack: export ATTACK_RESULTS := $(if $(filter all,$(PART)),$(abspath tests/attack/outcomes.csv))
attack: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "attack$(if $(filter ci,$(PART)), and ci)" tests/attack

test-arm: $(VENV)/ready-dev .arm/ready
	$(BIN)/python -m pytest tests/export/test_arm.py -m arm

.arm/ready: requirements.lock tests/arm/prepare.sh | $(VENV)/python
	tests/arm/prepare.sh .arm $(BIN)/python
	@touch $@

bazel: export VENV := $(abspath $(VENV))
bazel: $(VENV)/ready-dev buildifier
	tests/bazel/run.sh build //...
	tests/bazel/run.sh test --test_size_filters=small //...
	$(BIN)/python -m pytest tests/project/test_bazel.py -m bazel
	tests/bazel/run.sh shutdown

BUILDIFIER := .bazel/node_modules/.bin/buildifier
buildifier: $(BUILDIFIER)
	$(BUILDIFIER) -mode=check -lint=warn -r BUILD MODULE.bazel WORKSPACE benchmarks export keras_resnet tests

$(BUILDIFIER): tests/bazel/package-lock.json
	@mkdir -p .bazel
	cp tests/bazel/package*.json .bazel
	npm --prefix .bazel ci --no-audit --no-fund --silent
	@touch $@

lint: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github

$(VENV)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed; this is %d.%d. Try: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# PYTHONDONTWRITEBYTECODE is unset so that pip writes bytecode files. Without them, every
# import of TensorFlow would compile its sources again.
$(VENV)/ready: requirements.lock | $(VENV)/python
	PYTHONDONTWRITEBYTECODE= $(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@touch $@

$(VENV)/ready-dev: requirements-dev.lock | $(VENV)/ready
	PYTHONDONTWRITEBYTECODE= $(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

# The lock files have hashes but no URLs, so that pip can use any package index. They cover
# all platforms and versions of Python.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet -c constraints.txt
lock:
	$(COMPILE) setup.py --extra cpu -o requirements.lock
	$(COMPILE) setup.py --extra cpu --extra dev -c requirements.lock -o requirements-dev.lock

# The wheel is built from the sdist, so that the sdist is tested too. The environment gets
# the newest dependencies, as a user's does. The empty PYTHONPATH hides the checkout.
dist: export PYTHONPATH :=
dist: export PYTHONDONTWRITEBYTECODE :=
dist: $(VENV)/ready-dev
	rm -rf build_wheel dist *.egg-info
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")' >/dev/null
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv dist/env
	dist/env/bin/pip install --quiet "$$(echo dist/*.whl)[cpu]"
	dist/env/bin/pip check
	cd dist && env/bin/keras-resnet-train --model=cifar_resnet8 --epochs=6 --model_dir=env/run
	cd dist && env/bin/keras-resnet-export --model=env/run --output=env/bundle --formats=float32
	cd dist && env/bin/keras-resnet-verify env/bundle
	cd dist && env/bin/python -c 'import keras_resnet, numpy; print(keras_resnet.ResNet("resnet20", weights="fashion_mnist").predict(numpy.zeros((1, 28, 28, 1))))'
	rm -rf dist/env

clean:
	rm -rf $(VENV) .arm .bazel build_wheel dist *.egg-info
