"""HTTP clients through the proxy of a daemon: whole blobs, small ranges, and very many connections."""

import http.client
import os
import random
import resource
import statistics
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from report import FLAVOURS, MIB, ROUNDS, head, percentile, row, size, spread, title

from harness import Cluster, Daemon, Flavour, Process
from harness.cluster import sha256

# Everything goes into the swarm, and also a small range is asked of the other peers before the origin.
EVERYTHING = "rules:\n- regex: '.*'\n  schedulingPolicy: always\n"
PIECE = 4 * MIB
RANGE = 128 << 10


def proxy() -> None:
    """A blob that is held, to one curl and to eight at once: ours, the public client, and nginx that serves the same file."""
    blob = size("BENCH_BLOB_MIB", 1024)
    title(f"a held blob of {blob} MiB through the proxy, loopback, tmpfs")
    head("who", "clients", "all done s", "CPU s of the server", "GB/s")
    with Cluster() as cluster:
        origin = cluster.origin(workers=os.cpu_count())
        source = origin.file("blob.bin", blob * MIB)
        url, want, scheduler = f"{origin.url}/blob.bin", sha256(source), cluster.scheduler()
        servers: dict[str, tuple[Process, list[str]]] = {}
        for flavour in FLAVOURS:
            daemon = cluster.daemon(flavour.value.replace(" ", "-"), flavour=flavour, schedulers=[scheduler], proxy=EVERYTHING).ready()
            through = ["--proxy", daemon.proxy_url]
            output = cluster.folder / "out"
            _curl(*through, "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "--output", output, url)
            assert sha256(output) == want, f"{flavour.value}: wrong bytes"
            output.unlink()
            servers[flavour.value] = (daemon.process, through)
        servers["nginx"] = (origin.process, [])
        seconds, cpu = {}, {}
        for clients in (1, 8):
            # Taking turns: whatever else goes on, goes on for all of them.
            for number in range(ROUNDS + 1):
                for who, (process, through) in servers.items():
                    before, started = process.cpu_seconds(), time.monotonic()
                    _curls(clients, blob * MIB, *through, url)
                    took, spent = time.monotonic() - started, process.cpu_seconds() - before
                    if number > 0:
                        seconds.setdefault((who, clients), []).append(took)
                        cpu.setdefault((who, clients), []).append(spent)
            for who in servers:
                rate = clients * blob * MIB / statistics.median(seconds[who, clients]) / 1e9
                row(who, clients, spread(seconds[who, clients]), spread(cpu[who, clients]), f"{rate:.2f}")
    print()
    for other in list(servers)[1:]:
        for clients in (1, 8):
            ratios = [statistics.median(values["ours", clients]) / max(0.001, statistics.median(values[other, clients]))
                      for values in (seconds, cpu)]
            print(f"ours / {other}, {clients} clients: time {ratios[0]:.2f}, CPU seconds {ratios[1]:.2f}")


def _curl(*args) -> str:
    argv = ["curl", "--silent", "--show-error", "--fail", "--write-out", "%{size_download}", *args]
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True).stdout


def _curls(clients: int, expected: int, *args) -> None:
    """So many at once; each of them must have received all of it."""
    argv = ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out", "%{size_download}", *args]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    for process in running:
        received = process.communicate(timeout=600)[0]
        assert process.returncode == 0 and int(received) == expected, f"curl ended with {process.returncode} after {received} bytes"


class Client:
    """One connection to a proxy that stays open, as a reader of small ranges has it."""

    def __init__(self, daemon: Daemon, url: str):
        self._url = url
        self._connection = http.client.HTTPConnection(daemon.ip, 4001, timeout=60)
        self._headers = {"Host": urlsplit(url).netloc}

    def get(self, start: int | None = None, length: int = RANGE) -> tuple[float, bytes]:
        """Asks for a range, or for all; returns the milliseconds until the last byte, and the bytes."""
        headers = self._headers if start is None else {**self._headers, "Range": f"bytes={start}-{start + length - 1}"}
        begun = time.perf_counter()
        self._connection.request("GET", self._url, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - begun) * 1000
        assert answer.status == (200 if start is None else 206), f"{answer.status}: {body[:200]}"
        return took, body

    def close(self) -> None:
        self._connection.close()


def ranges() -> None:
    """128 KiB at random places, each in a piece of its own: of a file that this host holds, and of one that only a peer holds."""
    blob, count = size("BENCH_BLOB_MIB", 1024), size("BENCH_RANGES", 200)
    count = min(count, blob * MIB // PIECE)
    title(f"{count} ranges of 128 KiB of {blob} MiB, each in another piece, one after the other over one connection, loopback")
    head("who", "held by", "first ms", "p50 ms", "p99 ms", "max ms", "origin bytes / file")
    for flavour in FLAVOURS:
        with Cluster() as cluster:
            origin = cluster.origin()
            source = origin.file("blob.bin", blob * MIB)
            scheduler, url = cluster.scheduler(), f"{origin.url}/blob.bin"
            parent = cluster.daemon("parent", flavour=flavour, seed=True, schedulers=[scheduler], proxy=EVERYTHING).ready()
            child = cluster.daemon("child", flavour=flavour, schedulers=[scheduler], proxy=EVERYTHING).ready()
            warm = cluster.folder / "warm"
            _curl("--proxy", parent.proxy_url, "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "--output", warm, url)
            assert sha256(warm) == sha256(source), "wrong bytes"
            warm.unlink()
            # The public client announces itself some seconds after its socket is there.
            time.sleep(5)
            for where, daemon in (("this host", parent), ("only a peer", child)):
                before = origin.bytes_sent("blob.bin")
                times = _ranges(daemon, url, source, count)
                read = (origin.bytes_sent("blob.bin") - before) / (blob * MIB)
                row(flavour.value, where, f"{times[0]:.2f}", f"{statistics.median(times[1:]):.2f}", f"{percentile(times[1:], 99):.2f}",
                    f"{max(times[1:]):.2f}", f"{read:.3f}")


def _ranges(daemon: Daemon, url: str, source: Path, count: int) -> list[float]:
    """Milliseconds of each range; the first one also makes the task known to this host."""
    chance = random.Random(4001)
    pieces = chance.sample(range(source.stat().st_size // PIECE), count)
    client, times = Client(daemon, url), []
    with open(source, "rb") as file:
        for piece in pieces:
            start = piece * PIECE + chance.randrange(PIECE - RANGE)
            took, body = client.get(start)
            times.append(took)
            file.seek(start)
            assert body == file.read(RANGE), f"wrong bytes at {start}"
    client.close()
    return times


def connections() -> None:
    """Very many connections that do nothing, 200 pulls at once beside them, and what all this leaves behind."""
    idle, pulls, blob = size("BENCH_CONNECTIONS", 10_000), 200, 16
    title(f"{idle} idle connections and {pulls} pulls of {blob} MiB at once")
    # For this process and for the daemon, which inherits it; root may go beyond the hard limit.
    files = idle + 4096
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, most)))
    head("when", "RSS MiB", "peak RSS MiB", "4 KiB p50 ms", "4 KiB p99 ms")
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("small.bin", 4096)
        origin.file("blob.bin", blob * MIB)
        daemon = cluster.daemon("peer", schedulers=[cluster.scheduler()], proxy=EVERYTHING).ready()
        small, large = f"{origin.url}/small.bin", f"{origin.url}/blob.bin"
        for url in (small, large):
            _curl("--proxy", daemon.proxy_url, "--output", "/dev/null", url)
        process = daemon.process

        def tell(when: str) -> None:
            peak = process.rss_mib_max()
            client = Client(daemon, small)
            times = [client.get()[0] for _ in range(100)]
            client.close()
            row(when, f"{process.rss_mib():.0f}", f"{peak:.0f}", f"{statistics.median(times):.2f}", f"{percentile(times, 99):.2f}")
            process.forget_rss_max()

        tell("at first")
        # Each has asked for something and is kept alive.
        clients = [Client(daemon, small) for _ in range(idle)]
        for client in clients:
            client.get()
        tell(f"{idle} idle")
        for number in range(1, 4):
            _many(pulls, blob * MIB, daemon, large)
            tell(f"{idle} idle, {pulls} pulls, time {number}")
        for client in clients:
            client.close()
        _many(pulls, blob * MIB, daemon, large)
        tell(f"no idle, {pulls} pulls")


def _many(pulls: int, expected: int, daemon: Daemon, url: str) -> None:
    """So many transfers at once, by one curl."""
    argv = ["curl", "--silent", "--show-error", "--fail", "--parallel", "--parallel-immediate", "--parallel-max", str(pulls),
            "--proxy", daemon.proxy_url, "--write-out", "%{size_download}\n"]
    for _ in range(pulls):
        argv += ["--output", "/dev/null", url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(expected)] * pulls, "a transfer is not whole"
