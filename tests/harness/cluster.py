"""A whole swarm on one machine, in a folder of its own and on addresses of its own."""

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import grpc
from .certificates import Authority
from .containerd import Containerd
from .daemon import Daemon, Flavour
from .origin import Origin
from .process import Process, free_port, wait_until
from .registry import Registry


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Cluster:
    """Use as a context manager: at its end every process is stopped and the folder is gone.

    Every service has its own address in a random 127.x.y.0/24, so default ports never clash between two runs.
    """

    def __init__(self, base: str = "/dev/shm"):
        self.folder = Path(tempfile.mkdtemp(prefix="dragonfly-test-", dir=base))
        self.folder.chmod(0o755)
        self._net = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
        self._next_ip = 1
        self.processes: list[Process] = []
        self.daemons: list[Daemon] = []
        # The network namespace of each scheduler.
        self._netns: dict[str, str | None] = {}
        self._runtimes: list[Containerd] = []
        self._registries: list[Registry] = []
        self._mounts: list[Path] = []

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind, _value, _trace) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        for runtime in self._runtimes:
            runtime.close()
        for daemon in self.daemons:
            if daemon.process.running:
                daemon.process.thaw()
                daemon.process.signal(15)
        for daemon in self.daemons:
            daemon.stop()
        for process in reversed(self.processes):
            process.stop()
        for registry in self._registries:
            registry.close()
        for mount in self._mounts:
            subprocess.run(["umount", mount], check=True)
        if failed and os.environ.get("KEEP_FAILED"):
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def ip(self) -> str:
        ip = f"{self._net}.{self._next_ip}"
        self._next_ip += 1
        return ip

    def tmpfs(self, name: str, size: int) -> Path:
        """A filesystem of `size` bytes. Needs root."""
        folder = self.folder / name
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dragonfly-test", folder], check=True)
        self._mounts.append(folder)
        return folder

    def hosts(self, scheduler: str) -> set[str]:
        """Names of the daemons, of those that this cluster has started, that the scheduler lists."""
        listed = grpc.call(scheduler, "scheduler.v2.Scheduler/ListHosts", netns=self._netns[scheduler])
        # Field 3 of a host: its name.
        return {daemon.name for daemon in self.daemons
                if b"\x1a" + bytes([len(daemon.name)]) + daemon.name.encode() in listed}

    def origin(self, **options) -> Origin:
        """Starts a web server; see `Origin` for the options."""
        origin = Origin(self.folder / f"origin{len(self.processes)}", self.ip(), **options)
        self.processes.append(origin.process)
        return origin

    def registry(self, name: str = "registry", **options) -> Registry:
        """Starts a registry; see `Registry` for the options."""
        registry = Registry(self.folder / name, options.pop("ip", None) or self.ip(), **options)
        self._registries.append(registry)
        return registry

    def authority(self) -> Authority:
        """A certificate authority of this run."""
        return Authority(self.folder / "authority")

    def containerd(self, name: str, netns: str | None = None) -> Containerd:
        """A containerd that is not started yet."""
        runtime = Containerd(self.folder / name, netns)
        self._runtimes.append(runtime)
        return runtime

    def manager(self) -> str:
        """Starts our manager; returns the address that daemons and schedulers are configured with."""
        ip, folder = self.ip(), self.folder / "manager"
        folder.mkdir()
        config = folder / "manager.yaml"
        config.write_text(f"""server:
  workHome: {folder}
  grpc:
    advertiseIP: {ip}
    listenIP: {ip}
    port:
      start: 65003
      end: 65003
  rest:
    addr: {ip}:{free_port(ip)}
database:
  url: sqlite://{folder}/manager.db
metrics:
  enable: false
""")
        process = Process("manager", [Flavour.OURS.program("dragonfly"), "manager", "--config", config, "--console"],
                          folder / "manager.log")
        self.processes.append(process)
        self._answers(process, ip, 65003)
        return f"http://{ip}:65003"

    def scheduler(self, name: str = "scheduler", manager: str | None = None, ip: str | None = None,
                  netns: str | None = None) -> str:
        """Starts our scheduler; returns `ip:port`. The process is `cluster.process(name)`."""
        ip, folder = ip or self.ip(), self.folder / name
        folder.mkdir()
        config = folder / "scheduler.yaml"
        managed = f"manager:\n  addr: {manager.removeprefix('http://')}\n  schedulerClusterID: 1\n" if manager else ""
        config.write_text(f"""server:
  host: {name}
  advertiseIP: {ip}
  listenIP: {ip}
  port: 8002
  workHome: {folder}
  dataDir: {folder}
{managed}metrics:
  enable: false
""")
        argv = [Flavour.OURS.program("dragonfly"), "scheduler", "--config", config, "--console",
                "--dynconfig", folder / "dynconfig.yaml"]
        process = Process(name, argv, folder / "scheduler.log", netns)
        self.processes.append(process)
        self._answers(process, ip, 8002, netns)
        self._netns[f"{ip}:8002"] = netns
        return f"{ip}:8002"

    def wait_for_bytes(self, daemons: list[Daemon], count: int, seconds: float = 30) -> None:
        """Waits until each of them has received so much in whole pieces."""
        for daemon in daemons:
            wait_until(lambda: daemon.received() >= count, seconds, f"{daemon.name} has received {count} bytes")

    def process(self, name: str) -> Process:
        return next(process for process in self.processes if process.name == name)

    def daemon(self, name: str, **options) -> Daemon:
        """Starts a daemon; see `Daemon` for the options. Call `ready()` on it before use."""
        daemon = Daemon(name, self.folder / name, options.pop("ip", None) or self.ip(), **options)
        self.daemons.append(daemon)
        return daemon

    def remove(self, daemon: Daemon) -> None:
        """Stops a daemon and deletes all that it has."""
        daemon.stop()
        self.daemons.remove(daemon)
        shutil.rmtree(daemon.folder)

    def _answers(self, process: Process, ip: str, port: int, netns: str | None = None) -> None:
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{ip}/{port}"]
        if netns:
            probe = ["ip", "netns", "exec", netns, *probe]

        def connects() -> bool:
            if not process.running:
                raise AssertionError(f"{process.name} ended: {process.text()[-2000:]}")
            return subprocess.run(probe, capture_output=True).returncode == 0

        wait_until(connects, 20, f"{process.name} listens on {ip}:{port}")
