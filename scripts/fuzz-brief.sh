#!/usr/bin/env bash
# Runs every fuzz target for a short time: FUZZ_SECONDS each (10 unless set), or only the targets named as arguments.
#
# With a nightly compiler (rustup toolchain install nightly) the targets are built with the address sanitizer:
#   cargo +nightly fuzz run TARGET -- -max_total_time=10
# Without one, the stable compiler is told to accept the instrumentation flags, and the sanitizer is left out:
#   RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none TARGET -- -max_total_time=10
#
# The random generator starts from FUZZ_SEED (1 unless set; 0 is another one each time), so that a commit that passed here does
# not fail elsewhere by chance. For a real hunt: FUZZ_SEED=0 FUZZ_SECONDS=600 scripts/fuzz-brief.sh
#
# A found input stands in fuzz/artifacts/TARGET/ and should become a test. What was learnt stays in fuzz/corpus/.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_FUZZ_VERSION=0.13.2
seconds="${FUZZ_SECONDS:-10}"
seed="${FUZZ_SEED:-1}"

if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: installing cargo-fuzz $CARGO_FUZZ_VERSION"
  cargo install --locked --quiet cargo-fuzz --version "$CARGO_FUZZ_VERSION"
fi

if command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly'; then
  run=(cargo +nightly fuzz run)
else
  echo "fuzz: no nightly compiler, so without the address sanitizer"
  export RUSTC_BOOTSTRAP=1
  run=(cargo fuzz run --sanitizer none)
fi

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(cargo fuzz list)
fi

# cargo-fuzz builds where CARGO_TARGET_DIR says; the flags differ from those of the other builds, so keep it apart.
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/fuzz"
fi

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
  echo "fuzz: ${run[*]} $target -- -max_total_time=$seconds"
  if ! "${run[@]}" "$target" -- -max_total_time="$seconds" -seed="$seed" -timeout=10 -rss_limit_mb=2048 >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz: $target FAILED" >&2
    exit 1
  fi
  # libFuzzer's last line: how many inputs were tried.
  grep -E '^Done [0-9]+ runs' "$log" || tail -n 1 "$log"
done
echo "fuzz: ${#targets[@]} targets, ${seconds} s each, nothing found"
