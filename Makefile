# The two commands that most people need:
#
#   make run    installs what is missing, builds in release mode, and shows a real swarm on this machine
#   make test   installs what is missing, and runs every check and test there is
#
# make run URL=https://example.org/file        downloads that file instead of a generated one
# make run ARGS="--once --json"                passes arguments on to `dragonfly demo`
#
# Rust (see rust-version in Cargo.toml) is assumed; https://rustup.rs installs it.

CARGO ?= cargo

.PHONY: help run build test deps check fmt clippy doc deny unit fuzz system interop bench

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,/rustup/p'

# What `--version` tells. Not for tests: a new commit would build everything anew.
run build interop bench: export DRAGONFLY_GIT_COMMIT = $(shell git rev-parse --short=7 HEAD 2>/dev/null || echo unknown)
run build interop bench: export DRAGONFLY_BUILD_TIME = $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)

# Arguments reach the recipes through the environment, so that a URL may hold any character.
export URL ARGS

run:
	@scripts/install-deps.sh run
	@$(CARGO) build --release --locked --bins -p dragonfly -p daemon -p tools
	@exec "$${CARGO_TARGET_DIR:-target}/release/dragonfly" demo $${URL:+--url "$$URL"} $(ARGS)

build:
	$(CARGO) build --release --locked --bins

deps:
	scripts/install-deps.sh test

# The cheap checks first: a slip in the form is told within a minute.
test: deps fmt clippy doc deny unit fuzz system
	@echo "make test: everything passed"

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

deny:
	scripts/deny.sh

# The binaries come first: some tests start them as processes.
unit:
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked

fuzz:
	scripts/fuzz-brief.sh

# Several of our programs at once, as real processes; what one package can test alone runs with `unit`.
system:
	scripts/with-programs.sh debug python3 -m unittest discover -s tests/system -t tests -v

# With the public client of Dragonfly v2, installed into a cache folder. Too slow for every run;
# docs/compatibility.md keeps the last result.
interop: deps
	scripts/with-programs.sh release --v2 tests/interop/run.py $(ARGS)

# The figures of bench/README.md, each beside its peer in one run.
bench: deps
	scripts/with-programs.sh release --v2 bench/bench.py $(or $(ARGS),all)
