"""Container images through the proxy: real registries, containerd with runc, skopeo and podman."""

import json
import os
import re
import socket
import subprocess
import threading

from harness import ALICE, Flavour, Images, Process, Registry, wait_until
from harness.grpc import GrpcError
from harness.images import Image, hello
from harness.node import RULES, Node, run_dfinit
from harness.registry import User

from .support import MIB, SystemTest, needs_root

# Longest time for a pull on a machine that is busy with other things.
PULL = 120
GREETING = "hello from the image"
MALLORY = User("mallory", "guess")


@needs_root("containerd, overlay mounts and runc")
class ImageTest(SystemTest):
    """A test with images and nodes."""

    def setUp(self) -> None:
        super().setUp()
        self.images = Images(self.cluster.folder / "images")
        self.hello = hello(self.cluster.folder, GREETING)

    def small_image(self) -> Image:
        """Layers of every kind, of which the largest has three pieces."""
        images = self.images
        return images.image([
            images.layer({"hello": self.hello}),
            images.layer({"random": 9 * MIB}, "stored"),
            images.layer({"text": b"squeezes well " * 20000}, "zstd"),
            images.layer({"plain": 70000}, "none"),
        ])

    def nodes(self, count: int, registries: list[Registry], **daemon) -> list[Node]:
        """Nodes that a scheduler knows, with a seed peer."""
        self.scheduler = scheduler = self.cluster.scheduler()
        daemon = {"schedulers": [scheduler], **daemon}
        seed_options = {**daemon, "proxy": "\n".join(text for text in (daemon.get("proxy", ""), RULES) if text)}
        seed = self.cluster.daemon("seed", seed=True, **seed_options)
        nodes = [Node(self.cluster, f"node{number}", registries, **daemon) for number in range(1, count + 1)]
        self.known(scheduler, [seed, *(node.daemon for node in nodes)])
        return [node.ready() for node in nodes]

    def at_once(self, *pulls) -> None:
        """Runs these at the same time; the first failure is the test's."""
        failures = []

        def run(pull) -> None:
            try:
                pull()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(pull,)) for pull in pulls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def assert_each_blob_left_once(self, registry: Registry, image: Image) -> None:
        sent = registry.blob_bytes()
        for blob in image.blobs:
            # Each host asks for a byte, and for 96 more by which the registry shows that it has the blob.
            surplus = sent.get(blob.digest, 0) - blob.size
            self.assertTrue(0 <= surplus <= 4 * 97, f"{sent.get(blob.digest)} of {blob.size} bytes of {blob.digest} ({blob.media_type})")

    def assert_runs(self, node: Node, reference: str, namespace: str = "default") -> None:
        self.assertEqual(node.containerd.run(reference, "greeter", namespace).strip(), GREETING)


class Pulls(ImageTest):
    def test_three_nodes_at_once_and_each_blob_leaves_the_registry_once(self):
        images = self.images
        layers = [images.layer({"hello": self.hello}),
                  images.layer({"model": int(os.environ.get("IMAGE_LAYER_MIB", "500")) * MIB}, "stored"),
                  images.layer({"words": b"squeezes well " * 20000, "random": 5 * MIB}, "zstd"),
                  *(images.layer({f"small{number}": 1000 + number}) for number in range(20))]
        here = images.image(layers)
        elsewhere = images.image([images.layer({"hello": b"for another machine"})], ("linux", "arm64"))
        registry = self.cluster.registry()
        reference = images.push(images.index([here, elsewhere]), registry, "team/model")
        one, two, three = self.nodes(3, [registry])
        self.at_once(lambda: one.pull(reference, seconds=PULL), lambda: two.cri_pull(reference, seconds=PULL),
                     lambda: three.cri_pull(reference, seconds=PULL))
        self.assert_each_blob_left_once(registry, here)
        self.assertNotIn(elsewhere.blobs[1].digest, registry.blob_bytes(), "a layer for another platform was read")
        self.assert_runs(one, reference)
        self.assert_runs(two, reference, "k8s.io")
        self.assert_runs(three, reference, "k8s.io")

    def test_a_pulled_image_is_pulled_again_while_the_registry_is_away(self):
        registry = self.cluster.registry()
        reference = self.images.push(self.small_image(), registry, "team/app")
        one, two = self.nodes(2, [registry])
        self.at_once(lambda: one.cri_pull(reference), lambda: two.cri_pull(reference))
        registry.stop()
        for node in (one, two):
            # By ctr, into another namespace, whose content store holds nothing of it.
            node.pull(reference)
            self.assert_runs(node, reference)

    def test_a_preheated_image_needs_no_registry(self):
        registry = self.cluster.registry()
        image = self.small_image()
        reference = self.images.push(image, registry, "team/app")
        nodes = self.nodes(2, [registry])
        preheat = [Flavour.OURS.program("dfctl"), "task", "preheat", f"oci://{reference}", "--plain-http", "--scope", "all_seed_peers",
                   "--scheduler-endpoint", f"http://{self.scheduler}"]

        def preheated() -> bool:
            # Until the scheduler takes the seed peer for one.
            return subprocess.run([str(word) for word in preheat], capture_output=True, timeout=PULL).returncode == 0

        wait_until(preheated, 60, "the image is preheated")
        self.assert_each_blob_left_once(registry, image)
        registry.stop()
        one, two = nodes
        self.at_once(lambda: one.cri_pull(reference), lambda: two.pull(reference))
        self.assert_runs(one, reference, "k8s.io")
        self.assert_runs(two, reference)

    def test_without_the_daemon_the_registry_is_asked(self):
        registry = self.cluster.registry()
        first = self.images.push(self.small_image(), registry, "team/first")
        second = self.images.push(self.small_image(), registry, "team/second")
        node, = self.nodes(1, [registry])
        node.daemon.stop()
        node.cri_pull(first)
        node.pull(second)
        self.assert_runs(node, first, "k8s.io")
        self.assert_runs(node, second)

    def test_a_registry_with_tls_and_its_own_ca_without_a_word_about_it_to_containerd(self):
        registry = self.cluster.registry(authority=self.cluster.authority())
        image = self.small_image()
        reference = self.images.push(image, registry, "team/app")
        upstreams = f"backend:\n  upstreams:\n  - host: {registry.host}\n    caCert: {registry.authority.cert}\n"
        # No registry is listed: the name of it comes in the query.
        one, two = self.nodes(2, [], extra=upstreams)
        self.at_once(lambda: one.cri_pull(reference), lambda: two.pull(reference))
        self.assert_each_blob_left_once(registry, image)
        self.assert_runs(one, reference, "k8s.io")


class PrivateRegistries(ImageTest):
    def test_with_a_password(self):
        self.check("basic")

    def test_with_a_token_server(self):
        self.check("token")

    def check(self, auth: str) -> None:
        registry = self.cluster.registry(auth=auth)
        image = self.small_image()
        reference = self.images.push(image, registry, "team/secret")
        one, two = self.nodes(2, [registry])
        one.cri_pull(reference, ALICE)
        # Everything is cached in the swarm now, and not for everybody.
        for user in (None, MALLORY):
            with self.assertRaises(GrpcError, msg=f"{user} has pulled a private image"):
                two.cri_pull(reference, user)
            self.assertNotEqual(two.pull(reference, user, check=False).returncode, 0)
        for node in (one, two):
            for blob in image.blobs:
                status = self.status(f"{node.daemon.proxy_url}/v2/team/secret/blobs/{blob.digest}", registry)
                self.assertEqual(status, 401, f"{blob.digest} at {node.daemon.name}")
        two.cri_pull(reference, ALICE)
        self.assert_runs(two, reference, "k8s.io")
        self.assert_each_blob_left_once(registry, image)

    @staticmethod
    def status(url: str, registry: Registry) -> int:
        done = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20",
                               "-H", f"X-Dragonfly-Registry: {registry.url}", url], capture_output=True, text=True, check=True)
        return int(done.stdout)


class OtherClients(ImageTest):
    """skopeo and podman, which read registries.conf."""

    def setUp(self) -> None:
        super().setUp()
        self.registry = self.cluster.registry()
        self.image = self.small_image()
        self.reference = self.images.push(self.image, self.registry, "team/app")
        # They do not name the registry to a mirror.
        self.node, = self.nodes(1, [], proxy=f"registryMirror:\n  addr: {self.registry.url}")
        self.conf = self.cluster.folder / "registries.conf"
        self.conf.write_text(f'[[registry]]\n# plain HTTP, in the test only\nlocation = "{self.registry.host}"\ninsecure = true\n')
        config = self.cluster.folder / "dfinit.yaml"
        config.write_text(f"proxy:\n  addr: {self.node.daemon.proxy_url}\ncontainerRuntime:\n  podman:\n    configPath: {self.conf}\n"
                          f"    registries:\n    - location: {self.registry.host}\n")
        run_dfinit(config, self.cluster.folder / "dfinit")

    def run_with_conf(self, *words) -> str:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=PULL,
                              env={**os.environ, "CONTAINERS_REGISTRIES_CONF": str(self.conf)})
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_skopeo(self):
        copy = self.cluster.folder / "copy"
        skopeo = ["skopeo", "--registries-conf", self.conf, "copy", "--preserve-digests", f"docker://{self.reference}"]
        self.run_with_conf(*skopeo, f"oci:{copy}:app")
        for blob in self.image.blobs:
            self.assertEqual((copy / "blobs" / "sha256" / blob.digest.split(":")[1]).stat().st_size, blob.size)
        self.assert_each_blob_left_once(self.registry, self.image)
        # All of it has come through the daemon: the registry is not needed any more.
        self.registry.stop()
        self.run_with_conf(*skopeo, f"oci:{copy}2:app")

    def test_podman(self):
        folder = self.cluster.folder / "podman"
        podman = ["podman", "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs", "--cgroup-manager",
                  "cgroupfs", "--events-backend", "none"]
        self.run_with_conf(*podman, "pull", "--quiet", self.reference)
        self.assert_each_blob_left_once(self.registry, self.image)
        found = json.loads(self.run_with_conf(*podman, "image", "inspect", self.reference))
        self.assertEqual(found[0]["Config"]["Cmd"], ["/hello"])
        # All of it has come through the daemon: the registry is not needed any more.
        self.registry.stop()
        self.run_with_conf(*podman, "rmi", self.reference)
        self.run_with_conf(*podman, "pull", "--quiet", self.reference)
        # Without the daemon podman goes on by itself.
        self.registry.start()
        self.run_with_conf(*podman, "rmi", self.reference)
        self.node.daemon.stop()
        self.run_with_conf(*podman, "pull", "--quiet", self.reference)


class HostTest(ImageTest):
    """dfinit on a host as it comes from the package: a runtime at its usual places, and not a word about registries."""

    # What takes the host's usual places, the command that runs there, and the socket by which it is seen to serve.
    PLACES: str
    COMMAND: str
    SOCKET: str
    # The configuration before dfinit comes.
    CONFIG: str
    BEFORE: str

    SUPERVISOR = """#!/bin/sh
# Runs the runtime, and again when it ends, as a service manager does.
{places}
trap 'kill $child; wait $child; exit 0' TERM
while :; do
  {command} &
  child=$!
  echo $child > {folder}/pid
  wait $child
  echo ended >> {folder}/restarts
done
"""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.cluster.folder / "host"
        for name in ("etc", "run"):
            (self.folder / name).mkdir(parents=True)
        self.config = self.folder / "etc" / self.CONFIG
        self.config.write_text(self.configuration())
        self.before = self.tree()
        supervisor = self.folder / "supervise"
        supervisor.write_text(self.SUPERVISOR.format(folder=self.folder, places=self.PLACES.format(folder=self.folder),
                                                     command=self.COMMAND.format(folder=self.folder)))
        self.host = Process("supervisor", ["unshare", "-m", "sh", supervisor], self.folder / "supervisor.log")
        self.cluster.processes.append(self.host)
        self.restart = (f"old=$(cat {self.folder}/pid); kill $old; while kill -0 $old 2>/dev/null; do sleep 0.05; done; "
                        f"while [ $(cat {self.folder}/pid) = $old ]; do sleep 0.05; done")
        wait_until(self.serves, 60, f"{self.COMMAND.split()[0]} serves")

    def configuration(self) -> str:
        return self.BEFORE.format(folder=self.folder)

    def serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / "run" / self.SOCKET)) == 0

    def tree(self) -> dict[str, str]:
        """The files of the runtime's configuration folder, apart from keys that it makes for itself."""
        folder = self.folder / "etc"
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != "key.json"}

    def dfinit(self, *words, code: int = 0) -> dict:
        """Runs dfinit where this host's files are at their usual places."""
        command = ["nsenter", "-m", "-t", self.host.pid, Flavour.OURS.program("dfinit"), "--config", self.folder / "dfinit.yaml",
                   "--state-dir", self.folder / "dfinit-state", "--restart-sentinel", self.folder / "restart-required",
                   "--output", "json", *words]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PULL)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return json.loads(done.stdout)

    def restarts(self) -> int:
        log = self.folder / "restarts"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def daemon_for(self, registry: Registry, **options):
        scheduler = self.cluster.scheduler()
        daemon = self.cluster.daemon("daemon", schedulers=[scheduler], **options)
        self.known(scheduler, [daemon])
        return daemon

    def check_from_nothing_to_a_proof_and_back(self, daemon, reference: str) -> None:
        """`dfinit.yaml` is written; `reference` is an image that the runtime can pull through the daemon only as dfinit sets it up."""
        told = self.dfinit("--dry-run")
        self.assertRegex(told["runtimes"][0]["version"], r"^\d+\.\d+\.\d+$")
        self.assertEqual(self.tree(), self.before)

        # Files only: a sign is left that a restart is due.
        told = self.dfinit()
        self.assertEqual([restart["done"] for restart in told["restarts"]], [False])
        self.assertTrue((self.folder / "restart-required").exists())
        self.assertNotEqual(self.tree(), self.before)

        told = self.dfinit("--restart", "--restart-command", self.restart, "--probe", reference)
        self.assertEqual(self.restarts(), 1)
        self.assertFalse((self.folder / "restart-required").exists())
        self.assertGreater(told["probes"][0]["requests"], 0)

        # Again: nothing to change, nothing to restart, and the proof holds.
        told = self.dfinit("--restart", "--restart-command", self.restart, "--probe", reference)
        self.assertEqual((told["changed"], told["restarts"], self.restarts()), ([], [], 1))
        self.assertGreater(told["probes"][0]["requests"], 0)

    def check_undone(self, restarts: int) -> None:
        self.dfinit("undo", "--restart", "--restart-command", self.restart)
        self.assertEqual(self.tree(), self.before)
        self.assertEqual(self.restarts(), restarts)
        self.assertFalse((self.folder / "dfinit-state").exists())


class ContainerdHost(HostTest):
    # The containerd that PATH names is the one that this host has.
    PLACES = """mount --bind $(command -v containerd) /usr/bin/containerd
mount --bind {folder}/etc /etc/containerd
mount -t tmpfs -o mode=755 host /run
mkdir /run/containerd
mount --bind {folder}/run /run/containerd"""
    COMMAND = "containerd --log-level info"
    SOCKET = "containerd.sock"
    CONFIG = "config.toml"
    BEFORE = """# A host of a test.
version = {version}
root = "{folder}/root"
state = "{folder}/state"

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    stream_server_port = "0" # any
  [plugins."io.containerd.internal.v1.opt"]
    path = "{folder}/opt"
"""

    def configuration(self) -> str:
        # The format that this containerd writes itself: 2 for 1.x, 3 from 2.0, 4 from 2.3 on.
        default = subprocess.run(["containerd", "config", "default"], capture_output=True, text=True, check=True).stdout
        self.format = int(re.search(r"^version = (\d+)$", default, re.MULTILINE).group(1))
        return self.BEFORE.format(folder=self.folder, version=self.format)

    def test_from_nothing_to_a_proof_and_back(self):
        registry = self.cluster.registry(authority=self.cluster.authority())
        reference = self.images.push(self.small_image(), registry, "team/app")
        upstreams = f"backend:\n  upstreams:\n  - host: {registry.host}\n    caCert: {registry.authority.cert}\n"
        daemon = self.daemon_for(registry, extra=upstreams, proxy=RULES)
        # Its metrics are found beside the proxy.
        (self.folder / "dfinit.yaml").write_text(f"proxy:\n  addr: {daemon.proxy_url}\ncontainerRuntime:\n  containerd: {{}}\n")
        self.check_from_nothing_to_a_proof_and_back(daemon, reference)
        written = self.config.read_text()
        self.assertIn("# any", written)
        plugin = "io.containerd.grpc.v1.cri" if self.format == 2 else "io.containerd.cri.v1.images"
        self.assertRegex(written, f"{plugin}['\"]\\.registry")
        # A daemon that does not answer is found out.
        daemon.stop()
        told = self.dfinit("--probe", reference, code=1)
        self.assertIn("metrics", told["error"])
        self.check_undone(restarts=2)


class DockerHost(HostTest):
    """The Docker engine, which knows nothing of the registry but that it is Docker Hub's mirror."""

    # No bridge and no packet filter: the network of this machine is left alone, and containers are not run.
    PLACES = """mount --bind {folder}/etc /etc/docker
mount -t tmpfs -o mode=755 host /run
mount --bind {folder}/run /run"""
    COMMAND = ("dockerd --data-root {folder}/root --storage-driver vfs --bridge none --iptables=false --ip6tables=false "
               "--ip-forward=false --userland-proxy=false")
    SOCKET = "docker.sock"
    CONFIG = "daemon.json"
    BEFORE = '{{\n    "log-driver": "json-file",\n    "shutdown-timeout": 1\n}}\n'

    def docker(self, *words, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(["docker", "-H", f"unix://{self.folder}/run/docker.sock", *words], capture_output=True, text=True, timeout=PULL)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def setup_text(self, daemon, mode: str) -> None:
        (self.folder / "dfinit.yaml").write_text(f"proxy:\n  addr: {daemon.proxy_url}\ncontainerRuntime:\n  docker:\n    mode: {mode}\n")

    def test_a_mirror_of_docker_hub_from_nothing_to_a_proof_and_back(self):
        # It stands in for Docker Hub: the image is pulled by a name without a registry.
        registry = self.cluster.registry()
        # Debian's engine does not know zstd.
        image = self.images.image([self.images.layer({"hello": self.hello}), self.images.layer({"random": 9 * MIB}, "stored")])
        self.images.push(image, registry, "team/app")
        daemon = self.daemon_for(registry, proxy=f"registryMirror:\n  addr: {registry.url}\n{RULES}")
        self.setup_text(daemon, "mirror")
        self.check_from_nothing_to_a_proof_and_back(daemon, "team/app:latest")
        self.assertIn('    "log-driver": "json-file"', self.config.read_text())
        self.assert_each_blob_left_once(registry, image)
        found = json.loads(self.docker("image", "inspect", "team/app:latest").stdout)
        self.assertEqual(found[0]["Config"]["Cmd"], ["/hello"])
        # All of it is in the swarm: the registry is not needed any more.
        registry.stop()
        self.docker("rmi", "team/app:latest")
        self.docker("pull", "team/app:latest")
        self.check_undone(restarts=2)

    def test_proxies_are_refused_for_an_engine_that_would_not_start_with_them(self):
        daemon = self.daemon_for(None)
        self.setup_text(daemon, "proxies")
        version = self.docker("version", "--format", "{{.Server.Version}}").stdout
        self.assertLess(int(version.split(".")[0]), 23, "this engine knows proxies: test that it goes through them")
        told = self.dfinit(code=1)
        self.assertIn("mode: mirror", told["error"])
        self.assertEqual(self.tree(), self.before)
