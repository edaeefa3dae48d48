"""A host that pulls images: a containerd, a daemon, and what dfinit wrote between them. Needs root."""

import subprocess
from pathlib import Path

from .cluster import Cluster
from .containerd import Containerd
from .daemon import Daemon, Flavour
from .registry import Registry, User

# As docs/containers.md has them.
RULES = """rules:
- regex: blobs/sha256.*
  schedulingPolicy: always
- regex: manifests/
  schedulingPolicy: always"""


class Node:
    """`registries` are set up by name, as private and plain ones have to be; all others go through the proxy as well."""

    def __init__(self, cluster: Cluster, name: str, registries: list[Registry], **daemon):
        self.folder, self.registries = cluster.folder / name, registries
        rules = "\n".join(text for text in (daemon.pop("proxy", ""), RULES) if text)
        self.daemon: Daemon = cluster.daemon(name, proxy=rules, **daemon)
        self.containerd: Containerd = cluster.containerd(f"{name}/containerd", self.daemon.netns)
        self.hosts = self.folder / "certs.d"
        with open(self.containerd.config, "a") as config:
            config.write(f'\n  [plugins."io.containerd.grpc.v1.cri".registry]\n    config_path = "{self.hosts}"\n')

    def ready(self, seconds: float = 30) -> "Node":
        """The daemon serves, dfinit has run, and containerd has started."""
        self.daemon.ready(seconds)
        self.dfinit()
        self.containerd.start()
        return self

    def dfinit(self, *words: str) -> str:
        listed = "".join(f"\n    - hostNamespace: {registry.host}\n      serverAddr: {registry.url}{_ca(registry)}"
                         for registry in self.registries)
        config = self.folder / "dfinit.yaml"
        config.write_text(f"proxy:\n  addr: {self.daemon.proxy_url}\ncontainerRuntime:\n  containerd:\n"
                          f"    configPath: {self.containerd.config}\n    registries:{listed or ' []'}\n")
        return run_dfinit(config, self.folder / "dfinit", *words)

    def pull(self, image: str, user: User | None = None, **options):
        """As ctr does it."""
        return self.containerd.pull(image, self.hosts, user=user, **options)

    def cri_pull(self, image: str, user: User | None = None, seconds: int = 120) -> str:
        """As a kubelet does it."""
        return self.containerd.cri_pull(image, user, seconds)

    def proxy_requests(self) -> float:
        return sum(self.daemon.metric("dragonfly_client_proxy_request_total").values())


def run_dfinit(config: Path, state: Path, *words: str) -> str:
    """What a dfinit that keeps its state in `state` prints when all goes well."""
    command = [str(word) for word in (Flavour.OURS.program("dfinit"), "--config", config, "--state-dir", state,
                                      "--restart-sentinel", state.with_name("restart-required"), *words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _ca(registry: Registry) -> str:
    return f"\n      ca: ['{registry.authority.cert}']" if registry.authority else ""
