# Everything runs in the lab, which tests/lab/with-lab sets up first. `make help` lists the targets.
LAB := tests/lab/with-lab
RUN := $(LAB) $(MAKE) --no-print-directory
BIN := .venv/bin
SCRIPTS := .ci/run loader/install-zfs tests/lab/with-lab tests/lab/clean $(wildcard release/*.sh image/*.sh) \
	$(filter-out %.Dockerfile %.config %.yml %/hello,$(wildcard tests/lab/images/*))

.PHONY: help demo test test-guest test-arm64 lint clean run-lint run-tests run-test-guest run-test-arm64

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile

demo: ## shows the whole pipeline on real kernels, without any account
	@$(LAB) $(BIN)/python -m tests.lab.demo

test: ## lint and all tests
	@$(RUN) run-lint run-tests

test-guest: ## what takes an hour or more where guests are emulated: a Docker engine and compilers in them
	@$(RUN) run-test-guest

test-arm64: ## both platforms of a kernel on this machine, one of them emulated: an hour or more
	@LAB_PACKAGES=qemu-system-aarch64:qemu-system-arm $(RUN) run-test-arm64

lint: ## ruff, mypy, shellcheck
	@$(RUN) run-lint

clean: ## removes all that the above made, but no Debian packages
	@tests/lab/clean

run-lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)

run-tests:
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

run-test-guest:
	$(BIN)/pytest -m guest

run-test-arm64:
	$(BIN)/pytest -m arm64
