"""Real processes for whole-system tests, interoperation and benchmarks.

Everything here starts real programs (ours, the public Dragonfly v2 client, nginx) on loopback addresses or in network
namespaces made for the run, and stops every one of them again. `Cluster` is the type to start from.
"""

from .cluster import Cluster
from .daemon import Daemon, Flavour
from .origin import Origin
from .process import Process, wait_until

__all__ = ["Cluster", "Daemon", "Flavour", "Origin", "Process", "wait_until"]
