#!/usr/bin/env bash
# The whole-system tests: real processes, sockets and services, started and stopped by each test. See tests/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --workspace --bins --locked
exec tests/run.sh "$@"
