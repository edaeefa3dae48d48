"""Real package managers through the daemons' proxy, with the rules of docs/package-managers.md.

Two hosts, each with a daemon, install the same package from one web server: over plain HTTP, and over HTTPS that the daemons
intercept for this server.
"""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Authority, Daemon, Origin
from harness.netns import Network
from harness.packages import Apt, Dnf, GitLfs, HuggingFace, Maven, PackageManager, Pip, Reach

from .support import MIB, SystemTest, needs_root

# A package takes more than one piece.
SIZE = 5 * MIB


@needs_root("network namespaces: some clients never use a proxy for a loopback address")
class PackageManagers(SystemTest):
    def setUp(self):
        self.network = self.enterContext(Network())
        super().setUp()
        self.clients = itertools.count()

    def test_pip(self):
        self.check(Pip)

    def test_maven(self):
        self.check(Maven)

    def test_dnf(self):
        self.check(Dnf)

    def test_apt(self):
        self.check(Apt)

    def test_git_lfs(self):
        self.check(GitLfs)

    def test_hugging_face(self):
        self.check(HuggingFace)

    def check(self, kind: type[PackageManager]) -> None:
        # The clients trust what the daemons make of the repository's certificate, and not that one itself.
        authority, ours = self.cluster.authority(), Authority(self.cluster.folder / "ours", "CA of the daemons")
        manager = kind(self.folder("repository"))
        self.addCleanup(manager.close)
        origin = self.origin(manager, authority)
        hosts = self.hosts(origin, manager, authority, ours)
        for version in ("1.0", "2.0"):
            # The second time, what tells of the newest version must not be held from the first.
            content = os.urandom(SIZE)
            package = manager.publish(version, content)
            self.install(manager, content, hosts, origin.url)
            self.assert_read_once(origin, package)
        received = [host.received() for host in hosts]
        self.assertGreaterEqual(min(received), 2 * SIZE, "a package did not come from the swarm")
        self.install(manager, content, hosts[:1], origin.url)
        self.assert_read_once(origin, package)
        self.assertEqual([host.received() for host in hosts], received, "a daemon fetched again what it holds")
        # Another URL is another task.
        self.install(manager, content, hosts, origin.tls_url, ours.cert)
        self.assert_read_once(origin, package, times=2.02)
        self.assertGreaterEqual(min(host.received() for host in hosts), 3 * SIZE, "a package did not come from the swarm")

    def install(self, manager: PackageManager, content: bytes, hosts: list[Daemon], url: str, ca: Path | None = None) -> None:
        """On all of these hosts at once, each with a client that knows nothing yet; checks what they get."""
        def on(host: Daemon) -> bytes:
            folder = self.folder(f"client{next(self.clients)}")
            return manager.install(Reach(url, host.proxy_url, ca, host.netns), folder)

        with ThreadPoolExecutor() as pool:
            for host, got in zip(hosts, pool.map(on, hosts)):
                self.assertTrue(got == content, f"{host.name} got something else from {url}")

    def folder(self, name: str) -> Path:
        folder = self.cluster.folder / name
        folder.mkdir()
        return folder

    def origin(self, manager: PackageManager, authority: Authority) -> Origin:
        netns, ip = self.network.host()
        origin = Origin(self.cluster.folder / "origin", ip, netns=netns, extra=manager.nginx, authority=authority)
        self.cluster.processes.append(origin.process)
        manager.www = origin.www
        return origin

    def hosts(self, origin: Origin, manager: PackageManager, authority: Authority, ours: Authority) -> list[Daemon]:
        """Two daemons, in a swarm with a seed, whose proxies share what the rule names on this origin."""
        netns, ip = self.network.host()
        scheduler = self.cluster.scheduler(ip=ip, netns=netns)
        proxy = f"rules:\n- regex: '^https?://{re.escape(origin.ip)}(:[0-9]+)?(/.*)?({manager.rule})'\n"
        if manager.filtered_query_params:
            proxy += f"  filteredQueryParams: {manager.filtered_query_params}\n"
        server = f"caCert: {ours.cert}\ncaKey: {ours.key}\n"
        extra = f"backend:\n  upstreams:\n  - host: {origin.ip}\n    caCert: {authority.cert}\n"
        daemons = []
        for name in ("seed", "peer1", "peer2"):
            netns, ip = self.network.host()
            daemons.append(self.cluster.daemon(name, ip=ip, netns=netns, seed=name == "seed", schedulers=[scheduler], proxy=proxy,
                                               proxy_server=server, extra=extra))
        self.known(scheduler, daemons)
        return daemons[1:]
