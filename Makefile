# The newcomer's commands. `make up` is a running cluster, `make test` is everything that CI runs.

SHELL := /bin/bash
# RocksDB takes some 25 CPU minutes to compile: it is built once, outside the checkout, for every clone.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/drave/target
DRAVE := $(CARGO_TARGET_DIR)/release/drave
DATA ?= data
NODES ?= 3

.PHONY: up build tools test soak lint docs bench install

up: build
	@$(DRAVE) up --nodes $(NODES) --data $(DATA)

build: tools
	cargo build --release --locked

tools:
	@scripts/install-tools

test:
	@scripts/install-tools --tests
	@scripts/test

# Half an hour of random faults; the tests have some seconds of it.
soak: tools
	DRAVE_SOAK_MINUTES=$(or $(MINUTES),30) cargo test --release --locked --test soak

lint: tools
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings

docs: tools
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --workspace --no-deps --locked

bench: build
	cargo bench --profile release --locked --bench end_to_end -- $(BENCH)

install: build
	install -D -m 755 $(DRAVE) $(or $(DESTDIR),/usr/local/bin)/drave
