#!/usr/bin/env bash
# Installs what is missing to build (`run`) or also to test (`test`). Safe to call again and again: it asks what is there
# first, and then does nothing. Needs root only when something is missing; uses sudo if it is not root.
#
# Services that come along as packages (nginx, PostgreSQL, MariaDB) are only used as programs by the tests, on free ports
# and in temporary folders: those that this script installs are neither started nor enabled.
set -euo pipefail

say() { echo "install-deps: $*" >&2; }
die() { say "$*"; exit 1; }

# protobuf-compiler: the build script of dragonfly-api runs protoc; libprotobuf-dev holds the messages that it imports.
# build-essential: ring and SQLite hold C.
RUN_PACKAGES=(build-essential ca-certificates protobuf-compiler libprotobuf-dev)
# Origins and databases of the tests; file systems for the storage tests; network namespaces; certificates; container
# runtimes with a registry, and the package managers that go through the proxy.
TEST_PACKAGES=(
  nginx-light postgresql mariadb-server
  xfsprogs e2fsprogs util-linux iproute2 procps
  curl openssl python3 zstd
  containerd runc docker-registry skopeo umoci podman docker.io
  python3-venv git git-lfs dnf createrepo-c apt-utils dpkg-dev rpm maven default-jdk-headless
)
SERVICES=(nginx postgresql mariadb containerd docker-registry podman docker)
HUGGINGFACE_HUB_VERSION=2.4.0
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "root is needed for: $*"
  fi
}

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

install_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null; then
    say "this is not a Debian or Ubuntu system; make sure that these or their like are installed: $*"
    return
  fi
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0

  say "installing ${missing[*]}"
  local new_services=() service
  for service in "${SERVICES[@]}"; do
    [ -e "/etc/init.d/$service" ] || new_services+=("$service")
  done
  hold_services
  as_root apt-get update -q >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
  release_services
  for service in "${new_services[@]}"; do disable_service "$service"; done
}

# While packages are installed, policy-rc.d answers 101 ("do not") to whoever wants to start a service.
POLICY=/usr/sbin/policy-rc.d
policy_is_ours=false
hold_services() {
  [ -e "$POLICY" ] && return
  policy_is_ours=true
  trap release_services EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
  as_root chmod 755 "$POLICY"
}
release_services() {
  if $policy_is_ours; then as_root rm -f "$POLICY"; policy_is_ours=false; fi
}
disable_service() {
  [ -e "/etc/init.d/$1" ] || return 0
  as_root update-rc.d "$1" disable >&2 || true
  # A socket unit would start it at the first connection.
  if command -v systemctl >/dev/null; then
    as_root systemctl disable --quiet "$1.service" >&2 || true
    as_root systemctl disable --quiet "$1.socket" 2>/dev/null || true
  fi
}

check_rust() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust with https://rustup.rs, then try again"
}

install_cargo_tools() {
  if ! cargo deny --version >/dev/null 2>&1; then
    say "installing cargo-deny $CARGO_DENY_VERSION (builds for some minutes, once)"
    cargo install --locked --quiet cargo-deny --version "$CARGO_DENY_VERSION" >&2
  fi
  # Fuzzing needs a nightly compiler, which only rustup can bring; without it scripts/fuzz-brief.sh says so.
  if command -v rustup >/dev/null; then
    rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal >&2
    if ! cargo fuzz --version >/dev/null 2>&1; then
      say "installing cargo-fuzz $CARGO_FUZZ_VERSION"
      cargo install --locked --quiet cargo-fuzz --version "$CARGO_FUZZ_VERSION" >&2
    fi
  fi
}

# A virtual environment of the tests; its pip is a client too. PyPI is asked only when something is missing.
install_python_libraries() {
  local python="${XDG_CACHE_HOME:-$HOME/.cache}/dragonfly-tests/python"
  "$python/bin/python" -c "import huggingface_hub as hub; assert hub.__version__ == '$HUGGINGFACE_HUB_VERSION'" 2>/dev/null && return
  say "installing huggingface_hub $HUGGINGFACE_HUB_VERSION into $python"
  rm -rf "$python"
  python3 -m venv "$python" >&2
  "$python/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==$HUGGINGFACE_HUB_VERSION" >&2
}

case "${1:-}" in
  run)
    check_rust
    install_packages "${RUN_PACKAGES[@]}"
    ;;
  test)
    check_rust
    install_packages "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
    install_python_libraries
    install_cargo_tools
    "$(dirname "$0")/test-servers.sh"
    ;;
  *)
    echo "usage: scripts/install-deps.sh run|test" >&2
    exit 2
    ;;
esac
