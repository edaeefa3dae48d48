"""Hosts with links of a given rate: network namespaces on one bridge, shaped by `tc tbf` both ways. Needs root."""

import itertools
import os
import subprocess


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Network:
    """Use as a context manager; all namespaces are gone at its end.

    `host(rate)` returns a namespace and its address. `rate` is in Mbit/s for each direction; None is not shaped.
    """

    _numbers = itertools.count(1)

    def __init__(self):
        self._prefix = f"df{os.getpid() % 10000}x{next(self._numbers)}"
        self._net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        self._switch = f"{self._prefix}s"
        self._hosts: list[str] = []

    def __enter__(self) -> "Network":
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_error) -> None:
        for name in [*self._hosts, self._switch]:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def host(self, rate_mbit: int | None = None) -> tuple[str, str]:
        number = len(self._hosts) + 1
        name, address, port = f"{self._prefix}h{number}", f"{self._net}.{number}", f"p{number}"
        _ip("netns", "add", name)
        self._hosts.append(name)
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-n", name, "link", "set", interface, "up")
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        if rate_mbit:
            for namespace, interface in ((name, "eth0"), (self._switch, port)):
                subprocess.run(
                    ["tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf",
                     "rate", f"{rate_mbit}mbit", "burst", "128kb", "latency", "25ms"], check=True)
        return name, address
