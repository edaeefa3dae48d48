#!/usr/bin/env bash
# usage: scripts/with-programs.sh release|debug [--v2] COMMAND...
#
# Builds our programs and runs COMMAND with DRAGONFLY_BIN set to their folder. With --v2 it also installs the public client of
# Dragonfly v2 (once, into a cache folder, from its published crate) and sets DRAGONFLY_V2_BIN.
set -euo pipefail
cd "$(dirname "$0")/.."

V2_VERSION=1.5.10

profile=$1
shift
flags=()
if [ "$profile" = release ]; then flags=(--release); fi
cargo build --workspace --bins --examples --locked "${flags[@]}" >&2

target=$(realpath "${CARGO_TARGET_DIR:-target}")
export DRAGONFLY_BIN="$target/$profile"

if [ "${1:-}" = --v2 ]; then
  shift
  if [ -z "${DRAGONFLY_V2_BIN:-}" ]; then
    root="${XDG_CACHE_HOME:-$HOME/.cache}/dragonfly-v2-client/$V2_VERSION"
    if [ ! -x "$root/bin/dfdaemon" ]; then
      echo "installing the public client $V2_VERSION into $root (builds for some minutes, once)" >&2
      CARGO_TARGET_DIR="$root/target" cargo install --locked --quiet --root "$root" dragonfly-client --version "$V2_VERSION" >&2
      rm -rf "$root/target"
    fi
    export DRAGONFLY_V2_BIN="$root/bin"
  fi
fi

exec "$@"
