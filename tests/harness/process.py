"""One started program: its log, its CPU and memory, and its certain end."""

import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition, seconds: float, what: str):
    """Polls `condition` until it is true and returns its value; fails loudly after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def free_port(ip: str) -> int:
    """A port of `ip` that nobody listens on, also not on all addresses at once.

    It is none of those that the kernel gives to connections and to port 0, so nothing takes it until it is bound.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(10_000, max(lowest, 20_000)), 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
                return port
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    raise AssertionError(f"no free port on {ip}")


def _cpu_seconds(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Process:
    """A program that runs until `stop`; it dies with us in any case."""

    def __init__(self, name: str, argv: list, log: Path, netns: str | None = None, env: dict | None = None):
        self.name = name
        self.log = log
        if netns:
            argv = ["ip", "netns", "exec", netns, *argv]
        with open(log, "ab") as out:
            self._popen = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        # `ip netns exec` replaces itself by the program: the pid is the program's own.
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def cpu_seconds(self) -> float:
        """Of the program and the processes that it has started and that still run."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sum(_cpu_seconds(pid) for pid in [str(self.pid), *children])

    def file_bytes_written(self) -> int:
        """Bytes written so far, almost all of them to files: sockets are sent to by other calls, and what sendfile passes on counts
        as read and as written."""
        counts = dict(line.split(": ") for line in Path(f"/proc/{self.pid}/io").read_text().splitlines())
        return int(counts["wchar"]) - int(counts["rchar"])

    def _status_mib(self, key: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"{self.name}: no {key} in its status")

    def rss_mib(self) -> float:
        return self._status_mib("VmRSS:")

    def rss_mib_max(self) -> float:
        return self._status_mib("VmHWM:")

    def forget_rss_max(self) -> None:
        """Restarts the peak of the resident memory from now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(10)

    def wait(self, seconds: float) -> int:
        return self._popen.wait(seconds)

    def stop(self, seconds: float = 15) -> int:
        """Asks it to end, makes it end, and returns its exit code."""
        if self.running:
            self._popen.send_signal(signal.SIGCONT)
            self._popen.terminate()
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(10)
        return self._popen.returncode

    def text(self) -> str:
        return self.log.read_text(errors="replace")
