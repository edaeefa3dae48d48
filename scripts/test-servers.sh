#!/usr/bin/env bash
# Installs the servers that the tests of origins start: moto (S3), an emulator of Google Cloud Storage, azurite (Azure) and
# Hadoop's mini cluster (HDFS). They come from PyPI, npm and Maven Central into ${XDG_CACHE_HOME:-~/.cache}/dragonfly-tests, once:
# each folder is made anew when the file that lists its content has changed, and is complete or not there.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/dragonfly-tests"
mkdir -p "$cache"
# Two runs at the same time take turns.
exec 9>"$cache/.lock"
flock 9

# NAME LIST COMMAND...: has COMMAND fill the folder $cache/NAME from the file LIST, unless that was done for this LIST.
provide() {
  local name="$1" list="$2" folder="$cache/$1"
  shift 2
  if cmp -s "$list" "$folder/.made-from"; then return; fi
  echo "test-servers: installing $name into $folder" >&2
  rm -rf "$folder"
  mkdir -p "$folder"
  if ! "$@" "$folder" >"$cache/$name.log" 2>&1; then
    tail -n 20 "$cache/$name.log" >&2
    echo "test-servers: $name could not be installed" >&2
    exit 1
  fi
  cp "$list" "$folder/.made-from"
}

python_servers() { python3 -m venv "$1" && "$1/bin/pip" install --quiet -r tests/servers/requirements.txt; }
node_servers() { cp tests/servers/package.json "$1" && npm install --prefix "$1" --no-audit --no-fund --omit=dev; }
hadoop() { mvn -q -B -f tests/servers/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1"; }

provide python-servers tests/servers/requirements.txt python_servers
provide node-servers tests/servers/package.json node_servers
provide hadoop tests/servers/pom.xml hadoop
