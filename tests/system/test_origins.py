"""Origins that are no web servers, through a whole swarm: keys and tokens reach the seed, and the origin is read once."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from harness import Daemon, Origin, wait_until
from harness.netns import Network

from .support import MIB, QUIET, SystemTest, needs_root, processes_of

SERVERS = Path(__file__).resolve().parent.parent / "servers"
EXAMPLE = SERVERS.parent.parent / "examples" / "plugins" / "file-tree.py"
# Exit codes of dfget, as its help tells them.
FAILED, ORIGIN = 1, 4
# Where clouds have the metadata service of a machine.
METADATA = "169.254.169.254"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dragonfly-tests"


def content(text: str, length: int) -> bytes:
    text = text.encode()
    return (text * (length // len(text) + 1))[:length]


class OriginTest(SystemTest):
    def server(self, python: Path | str, *words: str, netns: str | None = None) -> dict:
        """Starts a script of tests/servers and returns what it tells when it is ready."""
        argv = [*(("ip", "netns", "exec", netns) if netns else ()), python, SERVERS / words[0], *words[1:]]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def stop():
            process.stdin.close()
            process.wait(timeout=30)
            process.stdout.close()

        self.addCleanup(stop)
        return json.loads(process.stdout.readline())

    def fetch(self, daemon, url: str, *options: str) -> bytes:
        got = daemon.dfget(url, self.output(daemon), *options, seconds=QUIET)
        self.assertEqual(got.code, 0, got.stderr)
        data = got.output.read_bytes()
        got.output.unlink()
        return data


class Origins(OriginTest):
    def test_a_gated_model_is_read_once_with_the_callers_token(self):
        facts = self.server(sys.executable, "hub.py")
        _seed, *peers = self.swarm(2)
        # Contents as small as this are otherwise not worth a question to the scheduler.
        options = ["--hf-token", "good", "--hf-base-url", facts["hub"], "--scheduling-policy", "always"]
        url = "hf://owner/gated/weights/model%201.safetensors"
        for peer in peers:
            self.assertEqual(self.fetch(peer, url, *options), content("0 weights/model 1.safetensors\n", 300_000))
        sent = int(urllib.request.urlopen(f"{facts['hub']}/sent").read())
        self.assertLessEqual(sent, 303_000, "the store was read more than once")

        refused = peers[0].dfget("hf://owner/gated/config.json", self.output(peers[0], "no"), *options[2:], seconds=QUIET)
        self.assertNotEqual(refused.code, 0)
        self.assertIn("401", refused.stderr)
        for daemon in (_seed, *peers):
            self.assertNotIn("Bearer", daemon.process.text())

    def test_a_model_whose_bytes_are_not_what_the_hub_says(self):
        facts = self.server(sys.executable, "hub.py")
        _seed, peer = self.swarm(1)
        got = peer.dfget("hf://owner/forged/weights/model%201.safetensors", self.output(peer), "--hf-base-url", facts["hub"],
                         seconds=QUIET)
        self.assertNotEqual(got.code, 0)
        self.assertIn("sha256", got.stderr)
        self.assertFalse(got.output.exists())

    def test_objects_are_read_with_the_callers_keys(self):
        facts = self.server(CACHE / "python-servers/bin/python", "objects.py", "s3")
        _seed, *peers = self.swarm(2)
        options = ["--storage-endpoint", facts["endpoint"], "--storage-region", "us-east-1"]
        options += ["--storage-access-key-id", facts["key_id"], "--storage-access-key-secret", facts["key_secret"]]
        for peer in peers:
            got = self.fetch(peer, "s3://models/dir/plain.bin", *options)
            self.assertEqual(got, content("dir/plain.bin", 300_000))
        for daemon in (_seed, *peers):
            self.assertNotIn(facts["key_secret"], daemon.process.text())


class OwnKeys(OriginTest):
    """Storages that the caller brings no keys for: those of the daemon count, from wherever the clouds put them."""

    URL = "dir/plain.bin"
    EXPECTED = content("dir/plain.bin", 300_000)

    def objects(self, kind: str, netns: str | None = None) -> dict:
        return self.server(CACHE / "python-servers/bin/python", "objects.py", kind, netns=netns)

    def with_environment(self, name: str, netns: str | None = None, **variables) -> Daemon:
        """A daemon alone, with no more in its environment than that."""
        prefix = ["env", "-i", f"PATH={os.environ['PATH']}", *(f"{key}={value}" for key, value in variables.items())]
        return self.cluster.daemon(name, prefix=prefix, netns=netns).ready()

    def test_amazon_environment_and_profile(self):
        facts = self.objects("s3")
        options = ["--storage-endpoint", facts["endpoint"], "--storage-region", "us-east-1"]
        keys = {"AWS_ACCESS_KEY_ID": facts["key_id"], "AWS_SECRET_ACCESS_KEY": facts["key_secret"]}
        nowhere = {"AWS_EC2_METADATA_DISABLED": "true"}
        stranger = self.with_environment("stranger", **nowhere)
        got = stranger.dfget(f"s3://models/{self.URL}", self.output(stranger), *options, seconds=QUIET)
        self.assertEqual(got.code, ORIGIN, got.stderr)
        self.assertIn("403", got.stderr)
        daemon = self.with_environment("environment", **keys, **nowhere)
        self.assertEqual(self.fetch(daemon, f"s3://models/{self.URL}", *options), self.EXPECTED)
        home = self.cluster.folder / "home"
        (home / ".aws").mkdir(parents=True)
        (home / ".aws" / "credentials").write_text(
            f"[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
            f"[reader]\naws_access_key_id = {facts['key_id']}\naws_secret_access_key = {facts['key_secret']}\n")
        daemon = self.with_environment("profile", HOME=home, AWS_PROFILE="reader", **nowhere)
        self.assertEqual(self.fetch(daemon, f"s3://models/{self.URL}", *options), self.EXPECTED)
        for daemon in self.cluster.daemons:
            self.assertNotIn(facts["key_secret"], daemon.process.text())

    def test_azure_environment(self):
        facts = self.objects("azure")
        options = ["--storage-endpoint", facts["endpoint"]]
        daemon = self.with_environment("environment", AZBLOB_ACCOUNT_NAME=facts["key_id"], AZBLOB_ACCOUNT_KEY=facts["key_secret"])
        self.assertEqual(self.fetch(daemon, f"abs://models/{self.URL}", *options), self.EXPECTED)

    @needs_root("a network namespace with an address for metadata")
    def test_the_role_of_the_machine(self):
        """The daemon asks the metadata service for itself; nobody can make it read that address for him."""
        network = self.enterContext(Network())
        netns, _ip = network.host()
        subprocess.run(["ip", "-n", netns, "addr", "add", f"{METADATA}/32", "dev", "lo"], check=True)
        s3, gcs = (self.objects(kind, netns) for kind in ("s3", "gcs"))
        self.server(sys.executable, "metadata.py", METADATA, *s3["role"], "token-of-the-machine", netns=netns)
        # The emulator asks nobody for credentials; what stands before it does.
        folder = self.cluster.folder / "gate"
        gate = Origin(folder, "127.0.0.1", netns=netns, extra="location /storage/ { "
                      'if ($http_authorization != "Bearer token-of-the-machine") { return 401; } '
                      f"proxy_pass {gcs['endpoint']}; proxy_set_header Host $http_host; }}")
        self.cluster.processes.append(gate.process)
        daemon = self.with_environment("machine", netns, GCE_METADATA_HOST=METADATA)
        got = self.fetch(daemon, f"s3://models/{self.URL}", "--storage-endpoint", s3["endpoint"], "--storage-region", "us-east-1")
        self.assertEqual(got, self.EXPECTED)
        self.assertEqual(self.fetch(daemon, f"gs://models/{self.URL}", "--storage-endpoint", gate.url), self.EXPECTED)
        got = daemon.dfget(f"http://{METADATA}/latest/meta-data/", self.output(daemon, "stolen"), seconds=QUIET)
        self.assertNotEqual(got.code, 0)
        self.assertIn("forbidden by the egress policy", got.stderr)


# The example, with every request that it reads noted in a file. To be filled in: the file, the root of the tree, the example.
NOTING_PLUGIN = """#!/usr/bin/env python3
import os, runpy, sys

class Noted:
    def __iter__(self):
        for line in sys.__stdin__.buffer:
            with open(%r, "ab", buffering=0) as notes:
                notes.write(line)
            yield line

Noted.buffer = Noted()
sys.stdin = Noted
os.environ["FILE_TREE_ROOT"] = %r
runpy.run_path(%r)
"""


class Plugins(SystemTest):
    """The example plugin of docs/plugins.md, at the seed and at the peers."""

    def setUp(self):
        super().setUp()
        self.tree = self.cluster.folder / "tree"
        self.tree.mkdir()

    def tree_file(self, name: str, length: int) -> bytes:
        path, data = self.tree / name, content(name, length)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return data

    def plugged(self, peers: int) -> list[Daemon]:
        """A swarm with the plugin everywhere."""
        for name in ("seed", *(f"peer{number}" for number in range(1, peers + 1))):
            file = self.cluster.folder / name / "plugins" / "backend" / "file-tree.py"
            file.parent.mkdir(parents=True)
            file.write_text(NOTING_PLUGIN % (str(self.notes(name)), str(self.tree), str(EXAMPLE)))
            file.chmod(0o755)
        return self.swarm(peers)

    def notes(self, name: str) -> Path:
        return self.cluster.folder / name / "requests.jsonl"

    def bytes_read(self, name: str) -> int:
        """Bytes that the plugin of this host was asked for."""
        total = 0
        for line in self.notes(name).read_text().splitlines() if self.notes(name).exists() else []:
            request = json.loads(line)
            if request["op"] == "get":
                size = (self.tree / request["url"].removeprefix("file-tree:///")).stat().st_size
                wanted = request.get("range", {"start": 0, "length": size})
                total += max(0, min(wanted["length"], size - wanted["start"]))
        return total

    def end(self, daemons: list[Daemon]) -> None:
        """The daemons stop, and their plugins with them."""
        for daemon in daemons:
            daemon.stop()
        for daemon in daemons:
            wait_until(lambda: not processes_of(daemon.folder), 10, f"the plugins of {daemon.name} have ended")

    def test_a_file_of_a_plugin_is_read_once_for_all_hosts(self):
        want = self.tree_file("models/a.bin", 9 * MIB + 5)
        daemons = self.plugged(2)
        for peer in daemons[1:]:
            got = peer.dfget("file-tree:///models/a.bin", self.output(peer), seconds=QUIET)
            self.assertEqual(got.code, 0, got.stderr)
            self.assertEqual(got.output.read_bytes(), want)
        read = {daemon.name: self.bytes_read(daemon.name) for daemon in daemons}
        self.assertGreaterEqual(sum(read.values()), len(want), "the notes do not tell all")
        self.assertLessEqual(sum(read.values()), 1.01 * len(want), read)
        self.assertEqual(read["peer2"], 0, "it was all in the swarm already")
        self.end(daemons)

    def test_a_directory_of_a_plugin(self):
        want = {name: self.tree_file(f"set/{name}", length)
                for name, length in (("one", 5 * MIB), ("two words/ä 100%.bin", 300_000), ("two words/deep/none", 0))}
        daemons = self.plugged(1)
        got = daemons[1].dfget("file-tree:///set/", self.output(daemons[1]), "--recursive", seconds=QUIET)
        self.assertEqual(got.code, 0, got.stderr)
        found = {str(path.relative_to(got.output)): path.read_bytes() for path in got.output.rglob("*") if path.is_file()}
        self.assertEqual(found.keys(), want.keys())
        for name, data in want.items():
            self.assertEqual(found[name], data, f"{name} differs")
        self.end(daemons)

    def test_what_a_plugin_refuses_is_told_in_its_words(self):
        self.tree_file("folder/file", 10)
        daemons = self.plugged(1)
        for path, code, *words in (
            ("missing", ORIGIN, "404", "there is no such file"),
            ("%2e%2e%2fetc/passwd", ORIGIN, "403", "it lies outside of the tree"),
            ("folder", FAILED, "it is a folder: end its URL with /"),
        ):
            got = daemons[1].dfget(f"file-tree:///{path}", self.output(daemons[1]), seconds=QUIET)
            with self.subTest(path):
                self.assert_refused(got, code, f"file-tree:///{path}", *words)
        self.end(daemons)
