"""Directories of many small files, as datasets and models have them."""

import hashlib
import os
import statistics
import subprocess
import time
from pathlib import Path

from report import FLAVOURS, ROUNDS, head, row, size, spread, title

from harness import Cluster, Daemon, Origin

FILE = 20_000
BUCKET = "bucket"
# A bucket as S3 has it: an object is a file of the web server, and the only listing that is asked for lies ready. The public
# client cannot list over plain HTTP, and a storage server that thinks longer than both clients would be what is measured.
_STORAGE = """location /bucket {
    default_type application/octet-stream;
    if ($args ~ list-type=2) { rewrite ^ /listing.xml last; }
}
location = /listing.xml { default_type application/xml; }"""


def many_files() -> None:
    """1,000 files of 20 KB recursively from an object storage: not held, and held."""
    count = size("BENCH_FILES", 1000)
    title(f"{count} files of {FILE // 1000} KB, dfget --recursive, the whole process")
    head("who", "not held s", "files/s", "held s", "held, ms per file", "origin bytes / files")
    rates = []
    for flavour in FLAVOURS:
        with Cluster() as cluster:
            origin = cluster.origin(extra=_STORAGE)
            scheduler = cluster.scheduler()
            daemon = cluster.daemon("peer", flavour=flavour, schedulers=[scheduler]).ready()
            # The public client announces itself some seconds after its socket is there.
            time.sleep(5)
            cold, warm, sent = [], [], 0
            for number in range(ROUNDS):
                name = f"files{number}"
                content = _publish(origin, name, count)
                for times in (cold, warm):
                    output = cluster.folder / "out"
                    output.mkdir()
                    times.append(_fetch(daemon, origin, name, output, count))
                    _check(output, content)
                    subprocess.run(["rm", "-r", output], check=True)
                sent += origin.bytes_sent_below(f"{BUCKET}/{name}")
            rates.append(count / statistics.median(cold))
            row(flavour.value, spread(cold), f"{rates[-1]:.0f}", spread(warm), f"{statistics.median(warm) / count * 1000:.2f}",
                f"{sent / (ROUNDS * count * FILE):.3f}")
    if len(rates) == 2:
        print(f"\nours / public client, files per second not held: {rates[0] / rates[1]:.2f}")


def _publish(origin: Origin, name: str, count: int) -> dict[str, bytes]:
    """A folder of new files in the bucket, and the listing that names them. Returns the content by path."""
    content = {f"{number // 100:02}/{number:05}.bin": os.urandom(FILE) for number in range(count)}
    entries = []
    for path, data in content.items():
        file = origin.www / BUCKET / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        entries.append(f"<Contents><Key>{name}/{path}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                       f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{FILE}</Size><StorageClass>STANDARD</StorageClass></Contents>")
    (origin.www / "listing.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name>'
        f"<Prefix>{name}/</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{count}</MaxKeys><IsTruncated>false</IsTruncated>"
        f"{''.join(entries)}</ListBucketResult>\n")
    return content


def _fetch(daemon: Daemon, origin: Origin, name: str, output: Path, count: int) -> float:
    got = daemon.dfget(f"s3://{BUCKET}/{name}/", output, "--recursive", "--max-files", str(count + 100),
                       "--storage-endpoint", origin.url, "--storage-region", "us-east-1",
                       "--storage-access-key-id", "nobody", "--storage-access-key-secret", "no-secret", seconds=600)
    assert got.code == 0, got.stderr
    return got.seconds


def _check(output: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        assert (output / path).read_bytes() == data, f"{path} differs"
