"""Real processes for whole-system tests, interoperation and benchmarks.

Everything here starts real programs (ours, the public Dragonfly v2 client, nginx, docker-registry, containerd) on loopback addresses or in network
namespaces made for the run, and stops every one of them again. `Cluster` is the type to start from.
"""

from .certificates import Authority
from .cluster import Cluster
from .daemon import Daemon, Flavour
from .images import Images
from .origin import Origin
from .process import Process, wait_until
from .registry import ALICE, Registry

__all__ = ["ALICE", "Authority", "Cluster", "Daemon", "Flavour", "Images", "Origin", "Process", "Registry", "wait_until"]
