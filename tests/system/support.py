"""What the whole-system tests share."""

import os
import shutil
import sys
import threading
import time
import unittest
import unittest.mock
from pathlib import Path

from harness import Cluster, Daemon, Flavour, Origin, Process, wait_until
from harness.cluster import sha256

MIB = 1 << 20
PIECE = 4 * MIB

# Longest time for a small download that nothing disturbs, on a machine that is busy with other things.
QUIET = 60
# Longest time until a program that cannot do its work has said so.
PROMPT = 15


def processes_of(folder: Path) -> list[str]:
    """Every process of this machine that was started with a path in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(folder).encode() in words and state != "Z":
            found.append(f"{entry.name} {words.replace(bytes(1), b' ').decode()}")
    return found


class Progress:
    """Watches the bytes that some daemons store while downloads run, and how long each stored none.

    Use as a context manager around a disturbance; `gap` is in seconds by name.
    """

    # Less than this is log lines and journals.
    STEP = 256 << 10

    def __init__(self, running: dict[Daemon, Process]):
        self._running = running
        self._seen = {daemon: (daemon.process.file_bytes_written(), time.monotonic()) for daemon in running}
        self.gap = {daemon.name: 0.0 for daemon in running}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for daemon, (before, since) in self._seen.items():
                total, now, over = daemon.process.file_bytes_written(), time.monotonic(), not self._running[daemon].running
                if not over:
                    self.gap[daemon.name] = max(self.gap[daemon.name], now - since)
                if total >= before + self.STEP:
                    self._seen[daemon] = (total, now)

    @property
    def longest(self) -> float:
        return max(self.gap.values())


class SystemTest(unittest.TestCase):
    """A test with a cluster of its own, of which nothing is left at the end."""

    longMessage = True

    def setUp(self) -> None:
        self.cluster = Cluster()
        self.addCleanup(self._end)

    def _end(self) -> None:
        # While a cleanup runs, `_outcome.success` speaks of the cleanup.
        result = self._outcome.result
        failed = any(test is self for test, _ in [*result.failures, *result.errors])
        if failed:
            self._tell_logs()
        self.cluster.close(failed)
        self.assertEqual(processes_of(self.cluster.folder), [], "processes of the cluster are left")
        if not failed:
            self.assertFalse(self.cluster.folder.exists(), "the cluster's folder is left")

    def _tell_logs(self) -> None:
        for log in sorted(self.cluster.folder.glob("*/*.log")):
            lines = log.read_text(errors="replace").splitlines()
            print(f"--- {log.relative_to(self.cluster.folder)}", *lines[-12:], sep="\n", file=sys.stderr)

    def swarm(self, peers: int, **options) -> list[Daemon]:
        """A scheduler, a seed and some peers that it knows; the seed comes first. Options go to every daemon."""
        scheduler = self.cluster.scheduler()
        options = {"schedulers": [scheduler], **options}
        daemons = [self.cluster.daemon("seed", seed=True, **options)]
        daemons += [self.cluster.daemon(f"peer{number}", **options) for number in range(1, peers + 1)]
        self.known(scheduler, daemons)
        return daemons

    def known(self, scheduler: str, daemons: list[Daemon], seconds: float = 30) -> None:
        """Waits until these daemons serve and the scheduler knows them."""
        for daemon in daemons:
            daemon.ready(seconds)
            wait_until(lambda: daemon.name in self.cluster.hosts(scheduler), seconds, f"the scheduler knows {daemon.name}")

    def start_all(self, peers: list[Daemon], url: str, name: str = "out") -> dict[Daemon, Process]:
        """One dfget on each peer, at once."""
        return {peer: peer.start_dfget(url, self.output(peer, name)) for peer in peers}

    def output(self, peer: Daemon, name: str = "out") -> Path:
        return self.cluster.folder / peer.name / name

    def finish_all(self, running: dict[Daemon, Process], source: Path, name: str = "out", seconds: float = QUIET) -> None:
        """Every dfget ends with 0 within the time, and every output is right."""
        want, deadline = sha256(source), time.monotonic() + seconds
        for peer, process in running.items():
            code = process.wait(max(0.1, deadline - time.monotonic()))
            self.assertEqual(code, 0, f"dfget of {peer.name}: {process.text()}")
            self.assertEqual(sha256(self.output(peer, name)), want, f"the output of {peer.name} differs")

    def fetch_all(self, peers: list[Daemon], origin: Origin, name: str) -> None:
        self.finish_all(self.start_all(peers, f"{origin.url}/{name}", name), origin.www / name, name)

    def assert_read_once(self, origin: Origin, name: str, times: float = 1.01) -> None:
        size, sent = (origin.www / name).stat().st_size, origin.bytes_sent(name)
        self.assertLessEqual(sent, times * size, f"the origin sent {sent / size:.3f} times the file")

    def assert_refused(self, got, code: int, *words: str, seconds: float = PROMPT) -> None:
        """A dfget that failed promptly, with this exit code, in these words, and left no output."""
        self.assertEqual(got.code, code, got.stderr)
        self.assertLess(got.seconds, seconds, got.stderr)
        for word in words:
            self.assertIn(word.lower(), got.stderr.lower())
        self.assertFalse(got.output.exists(), "an output was left")

    def nobody(self) -> list[str]:
        """What to put before a command so that a user without any rights runs it. Our programs are made reachable for it."""
        programs = self.cluster.folder / "bin"
        programs.mkdir()
        for name in ("dfget", "dfdaemon"):
            shutil.copy(Flavour.OURS.program(name), programs / name)
        here = unittest.mock.patch.dict(os.environ, DRAGONFLY_BIN=str(programs))
        here.start()
        self.addCleanup(here.stop)
        return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def needs_root(why: str):
    return unittest.skipUnless(os.geteuid() == 0, f"needs root: {why}")
