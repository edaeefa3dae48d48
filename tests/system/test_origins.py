"""Origins that are no web servers, through a whole swarm: keys and tokens reach the seed, and the origin is read once."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from .support import QUIET, SystemTest

SERVERS = Path(__file__).resolve().parent.parent / "servers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dragonfly-tests"


def content(text: str, length: int) -> bytes:
    text = text.encode()
    return (text * (length // len(text) + 1))[:length]


class Origins(SystemTest):
    def server(self, python: Path | str, *words: str) -> dict:
        """Starts a script of tests/servers and returns what it tells when it is ready."""
        argv = [python, SERVERS / words[0], *words[1:]]
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
        return got.output.read_bytes()

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
