"""How the benchmarks tell what they have seen: tables in Markdown, medians with their spread."""

import math
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness import Flavour  # noqa: E402

MIB = 1 << 20
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
FLAVOURS = [Flavour.OURS] + ([Flavour.V2] if os.environ.get("DRAGONFLY_V2_BIN") else [])


def size(name: str, default: int) -> int:
    """How much of something; smaller than the default only to see that a benchmark works."""
    return int(os.environ.get(name, default))


def title(text: str) -> None:
    print(f"\n## {text}\n", flush=True)


def row(*cells) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})"


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
