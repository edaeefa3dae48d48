#!/usr/bin/env python3
"""The benchmarks of this project. Each is paired in one run with the public Dragonfly v2 client where that is named.

usage: bench.py NAME... | all

DRAGONFLY_BIN     folder of our release binaries (set by `make bench`)
DRAGONFLY_V2_BIN  folder of the public client's binaries; without it the paired column is left out
BENCH_ROUNDS      rounds per figure, default 5
"""

import sys

import downloads
import many_files
import proxied
import images

BENCHMARKS = {
    "one-parent": downloads.one_parent,
    "eight-peers": downloads.eight_peers,
    "links": downloads.links,
    "small": downloads.small,
    "cold-start": downloads.cold_start,
    "many-files": many_files.many_files,
    "proxy": proxied.proxy,
    "range": proxied.ranges,
    "connections": proxied.connections,
    "image-pull": images.image_pull,
}


def main() -> int:
    names = sys.argv[1:] or ["all"]
    if names == ["all"]:
        names = list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
