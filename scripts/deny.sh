#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, sources, duplicates, and known vulnerabilities.
#
# The advisory database is a git repository on github.com. Where that cannot be reached, the advisories are not checked and
# the output says so; everything else is checked from what cargo has already downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo deny --locked check --hide-inclusion-graph licenses bans sources

if timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
  cargo deny --locked --offline check --hide-inclusion-graph advisories
else
  echo "deny: the advisory database cannot be fetched from here: ADVISORIES WERE NOT CHECKED" >&2
fi
