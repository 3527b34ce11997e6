# Everything here sets itself up in .venv; it needs Python 3.11+, and Rust 1.95+ with cargo.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1

.PHONY: demo test test-rust test-python test-eval test-arm instructions bench goals lint format docs bundle wheel check-wheel build clean help

demo: $(VENV)/.built ## write a story with the bundled model
	@$(BIN)/pocketlm generate "Once upon a time, a little fox" --max-tokens 220 --temperature 0.7 --seed 7

test: test-rust test-python ## the tests

test-rust: ## the kernel and engine crates
	cargo test --workspace --exclude pocketlm-py

test-python: $(VENV)/.dev $(VENV)/.built ## the package, through the built module
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-eval: $(VENV)/.eval $(VENV)/.built ## the model class of lm-evaluation-harness through the harness (800 MB of packages)
	PYTHONPATH=python $(VENV)/eval/bin/python -m pytest tests/test_lm_eval.py

test-arm: ## the crates on emulated ARM processors (Debian 12, x86-64; downloads 240 MB once)
	tools/test-arm.sh

instructions: $(VENV)/.dev ## record the instruction counts that the tests compare with
	$(BIN)/python -m benches.instructions --record
	$(BIN)/python -m benches.performance

lint: $(VENV)/.dev $(VENV)/.built ## every lint, as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest pocketlm._core

format: $(VENV)/.dev ## rewrite the sources in the house style
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(VENV)/.built ## kernels, then end to end
	cargo run --release -p pocketlm-kernels --example kernel_bench
	cargo run --release -p pocketlm-kernels --example float_bench
	$(BIN)/python -m benches.synthetic llama-3.2-1b benches/out/llama-3.2-1b
	$(BIN)/pocketlm palettize benches/out/llama-3.2-1b benches/out/llama-3.2-1b-p4 --bits 4
	$(BIN)/pocketlm bench benches/out/llama-3.2-1b-p4

goals: $(VENV)/.dev $(VENV)/.built ## the speeds that pocketlm wants to reach, and which it reaches here (hours)
	$(BIN)/python -m benches.goals

bundle: $(VENV)/.dev $(VENV)/.built ## palettize the story model anew into the package; DATA=the folder of training texts
	$(BIN)/python -m training.bundle --data $(DATA)

wheel: $(VENV)/.base ## build the wheel into dist/ and say how large it is
	$(BIN)/maturin build --release --out dist
	@ls -l dist

check-wheel: wheel ## install it as a newcomer would, without a compiler, and write a story
	tools/check-wheel.sh dist/*.whl

docs: $(VENV)/.dev $(VENV)/.built ## check the documentation: links and examples
	$(BIN)/python -m pytest tests/test_docs.py
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

build: $(VENV)/.built ## compile the extension in place

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'maturin>=1.9,<2'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['dev'], sep='\n')" > $(VENV)/dev.txt
	$(BIN)/pip install --quiet -r $(VENV)/dev.txt
	touch $@

$(VENV)/.eval: pyproject.toml
	test -x $(VENV)/eval/bin/python || $(PYTHON) -m venv $(VENV)/eval
	$(VENV)/eval/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['eval'], 'pytest>=8', sep='\n')" > $(VENV)/eval.txt
	$(VENV)/eval/bin/pip install --quiet -r $(VENV)/eval.txt
	touch $@

$(VENV)/.built: $(VENV)/.base $(RUST)
	@echo 'compiling (the first time it takes some minutes) ...'
	$(BIN)/maturin develop --release --quiet 2>/dev/null || $(BIN)/maturin develop --release
	touch $@

help: ## list what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 14

clean: ## remove what was built
	rm -rf $(VENV) target dist
