"""A peer daemon and its command-line client, ours or the public Dragonfly v2 one."""

import contextlib
import dataclasses
import enum
import http.client
import os
import socket as sockets
import subprocess
import textwrap
import time
import urllib.parse
from pathlib import Path

from .process import Process, wait_until


class Flavour(enum.Enum):
    """Whose program it is."""

    OURS = "ours"
    V2 = "v2"

    def program(self, name: str) -> Path:
        key = {"ours": "DRAGONFLY_BIN", "v2": "DRAGONFLY_V2_BIN"}[self.value]
        folder = os.environ.get(key)
        if not folder:
            raise AssertionError(f"set {key} to the folder that holds {name} ({self.value})")
        return Path(folder) / name


@dataclasses.dataclass
class Got:
    """How one dfget ended."""

    code: int
    seconds: float
    output: Path
    stderr: str


@dataclasses.dataclass
class Answer:
    """How the proxy has answered; the headers' names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Daemon:
    """One dfdaemon with its own address and folder. The configuration file is the same for both flavours."""

    def __init__(self, name: str, folder: Path, ip: str, flavour: Flavour = Flavour.OURS, seed: bool = False,
                 manager: str | None = None, schedulers: list[str] | None = None, netns: str | None = None,
                 storage: Path | None = None, keep: bool = False, extra: str = "", log_level: str = "info",
                 prefix: list | None = None, upload_limit: str = "50GB", socket: Path | None = None, proxy: str = "",
                 proxy_server: str = ""):
        self.name, self.folder, self.ip, self.flavour, self.netns = name, folder, ip, flavour, netns
        self.seed, self.manager, self.schedulers = seed, manager, schedulers or []
        self.storage = storage or folder / "storage"
        self.keep, self.extra, self.log_level = keep, extra, log_level
        self.prefix, self.upload_limit = prefix or [], upload_limit
        # Further YAML keys of the sections `proxy` and `proxy.server`, each text from column 0.
        self.proxy, self.proxy_server = proxy, proxy_server
        self.socket = socket or folder / "dfdaemon.sock"
        folder.mkdir(parents=True, exist_ok=True)
        self.storage.mkdir(parents=True, exist_ok=True)
        self.process = None
        self.start()

    def start(self) -> None:
        """Starts it (again), with what its storage folder holds."""
        (self.folder / "dfdaemon.yaml").write_text(self._config())
        addrs = "".join(f"\n    - '{addr}'" for addr in self.schedulers)
        (self.folder / "dynconfig.yaml").write_text(f"scheduler:\n  addrs:{addrs or ' []'}\n")
        self.run()

    def run(self) -> None:
        """Starts it with the configuration files that are there."""
        config, dynconfig = self.folder / "dfdaemon.yaml", self.folder / "dynconfig.yaml"
        argv = [*self.prefix, self.flavour.program("dfdaemon"), "--config", config, "--dynconfig", dynconfig, "--console",
                "--log-level", self.log_level, "--log-dir", self.folder / "log"]
        self.process = Process(self.name, argv, self.folder / "dfdaemon.log", self.netns)

    def ready(self, seconds: float = 20) -> "Daemon":
        """Waits until its socket answers."""
        wait_until(lambda: self._answers() or not self.process.running, seconds, f"{self.name} serves its socket")
        if not self.process.running:
            raise AssertionError(f"{self.name} ended: {self.process.text()[-2000:]}")
        return self

    @property
    def proxy_url(self) -> str:
        return f"http://{self.ip}:4001"

    def _answers(self) -> bool:
        # A killed daemon leaves its socket file, so that the file alone says nothing.
        with sockets.socket(sockets.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _config(self) -> str:
        manager = f"manager:\n  addr: {self.manager}\n" if self.manager else ""
        seed = "seedPeer:\n  enable: true\n  type: super\n" if self.seed else ""
        return f"""host:
  hostname: {self.name}
  ip: {self.ip}
server:
  pluginDir: {self.folder}/plugins
  cacheDir: {self.folder}/cache
download:
  server:
    socketPath: {self.socket}
upload:
  server:
    ip: {self.ip}
    port: 4000
  bandwidthLimit: {self.upload_limit}
{manager}{seed}scheduler:
  announceInterval: 10s
dynconfig:
  refreshInterval: 5s
storage:
  dir: {self.storage}
  keep: {str(self.keep).lower()}
  server:
    ip: {self.ip}
    tcpPort: 4005
    quicPort: 4006
proxy:
  server:
    ip: {self.ip}
    port: 4001
{textwrap.indent(self.proxy_server, "    ")}
{textwrap.indent(self.proxy, "  ")}
health:
  server:
    ip: {self.ip}
    port: 4003
metrics:
  server:
    ip: {self.ip}
    port: 4002
stats:
  server:
    ip: {self.ip}
    port: 4004
{self.extra}"""

    def dfget_argv(self, url: str, output: Path | str, *args: str, flavour: Flavour | None = None) -> list:
        program = (flavour or self.flavour).program("dfget")
        return [program, url, "--output", output, "--endpoint", self.socket, "--no-progress", *args]

    def dfget(self, url: str, output: Path, *args: str, flavour: Flavour | None = None, seconds: float = 120,
              prefix: list | None = None) -> Got:
        """Runs the real dfget to its end; `prefix` is a command to run it by."""
        started = time.monotonic()
        argv = [*(prefix or []), *self.dfget_argv(url, output, *args, flavour=flavour)]
        done = subprocess.run([str(word) for word in argv],
                              capture_output=True, text=True, timeout=seconds)
        return Got(done.returncode, time.monotonic() - started, output, done.stderr + done.stdout)

    def start_dfget(self, url: str, output: Path, *args: str, flavour: Flavour | None = None) -> Process:
        """Starts dfget and returns at once."""
        log = self.folder / f"dfget-{output.name}.log"
        return Process(f"dfget-{self.name}", self.dfget_argv(url, output, *args, flavour=flavour), log)

    def by_proxy(self, url: str, headers: dict[str, str] | None = None, method: str = "GET", seconds: float = 120) -> "Answer":
        """What an HTTP client gets for an http URL through the daemon's proxy."""
        connection = http.client.HTTPConnection(self.ip, 4001, timeout=seconds)
        with contextlib.closing(connection):
            connection.request(method, url, headers={"Host": urllib.parse.urlsplit(url).netloc, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def metric(self, name: str) -> dict[str, float]:
        """All series of one metric: label text -> value."""
        command = ["curl", "-s", "--max-time", "2", f"http://{self.ip}:4002/metrics"]
        if self.netns:
            command = ["ip", "netns", "exec", self.netns, *command]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        series = {}
        for line in text.splitlines():
            if line.startswith(name) and line[len(name)] in " {":
                labels, value = line[len(name):].rsplit(" ", 1)
                series[labels] = float(value)
        return series

    def received(self) -> float:
        """Bytes of whole pieces received so far, from wherever; 0 while it does not answer."""
        try:
            return sum(self.metric("dragonfly_client_download_traffic").values())
        except subprocess.CalledProcessError:
            return 0

    def stop(self) -> int:
        return self.process.stop()
