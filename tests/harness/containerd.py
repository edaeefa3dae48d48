"""A node of a cluster as far as images go: a containerd of its own, with runc. Needs root."""

import subprocess
from pathlib import Path

from . import grpc
from .process import Process, wait_until
from .registry import User

_CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"

[grpc]
  address = "{folder}/c.sock"

[ttrpc]
  address = "{folder}/c.sock.ttrpc"

[plugins]
  # What follows belongs to this node.
  [plugins."io.containerd.grpc.v1.cri"]
    stream_server_address = "127.0.0.1"
    stream_server_port = "0"
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "{folder}/cni/bin"
      conf_dir = "{folder}/cni/conf"
  [plugins."io.containerd.internal.v1.opt"]
    path = "{folder}/opt"
"""


class Containerd:
    """One containerd in a folder of its own. Its `config` names no registry until something writes that in: start it after that."""

    def __init__(self, folder: Path, netns: str | None = None):
        self.folder, self.netns = folder, netns
        folder.mkdir(parents=True)
        self.config, self.socket = folder / "config.toml", folder / "c.sock"
        self.config.write_text(_CONFIG.format(folder=folder))
        self.process: Process | None = None

    def start(self) -> "Containerd":
        self.process = Process("containerd", ["containerd", "--config", self.config], self.folder / "containerd.log", self.netns)
        wait_until(lambda: self._serves() or not self.process.running, 30, "containerd serves its CRI")
        if not self.process.running:
            raise AssertionError(f"containerd did not start: {self.process.text()[-2000:]}")
        return self

    def restart(self) -> "Containerd":
        self.process.stop()
        return self.start()

    def close(self) -> None:
        if self.process:
            self.process.stop()

    def ctr(self, *words, namespace: str = "default", seconds: float = 120, check: bool = True) -> subprocess.CompletedProcess:
        command = [str(word) for word in ("ctr", "-a", self.socket, "-n", namespace, *words)]
        if self.netns:
            command = ["ip", "netns", "exec", self.netns, *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return done

    def pull(self, image: str, hosts: Path, *words, user: User | None = None, seconds: float = 120,
             check: bool = True) -> subprocess.CompletedProcess:
        """As `ctr images pull` does it, by the hosts.toml files in `hosts`."""
        access = ["--user", f"{user.name}:{user.password}"] if user else []
        return self.ctr("images", "pull", "--hosts-dir", hosts, *access, *words, image, seconds=seconds, check=check)

    def cri_pull(self, image: str, user: User | None = None, seconds: int = 120) -> str:
        """As a kubelet does it (`runtime.v1.ImageService/PullImage`): by `config_path` of the configuration. Returns the image's id."""
        spec = grpc.field(1, image)
        access = grpc.field(1, user.name) + grpc.field(2, user.password) if user else b""
        answer = grpc.call(str(self.socket), "runtime.v1.ImageService/PullImage", grpc.field(1, spec) + grpc.field(2, access), seconds)
        return answer[2:].decode()

    def run(self, image: str, name: str, namespace: str = "default") -> str:
        """What the image's command prints when it runs in a container. One that ends at once may be gone before ctr has opened its
        output on a busy machine: then it runs again."""
        for _ in range(5):
            if printed := self.ctr("run", "--rm", image, name, namespace=namespace).stdout:
                return printed
        return ""

    def forget(self, image: str, namespace: str = "default") -> None:
        """Deletes an image with all that nothing else needs."""
        self.ctr("images", "rm", "--sync", image, namespace=namespace)

    def blobs(self, namespace: str = "default") -> set[str]:
        """The digests that its content store holds."""
        return set(self.ctr("content", "ls", "-q", namespace=namespace).stdout.split())

    def _serves(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            grpc.call(str(self.socket), "runtime.v1.ImageService/ListImages", seconds=2)
            return True
        except (subprocess.CalledProcessError, grpc.GrpcError):
            return False
