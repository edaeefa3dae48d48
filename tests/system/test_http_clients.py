"""curl through the daemons' proxy: what any HTTP client may ask for."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Authority, Daemon, Origin
from harness.cluster import sha256

from .support import MIB, PIECE, QUIET, SystemTest

SIZE = 9 * MIB + 321


class HttpClients(SystemTest):
    def setUp(self):
        super().setUp()
        self.authority = self.cluster.authority()
        self.origin = self.cluster.origin(authority=self.authority)
        self.source = self.origin.file("shared.bin", SIZE)
        self.origin.file("other.txt", 5000)

    def daemons(self, names: int = 1, server: str = "") -> list[Daemon]:
        """A seed and peers with this one rule; the peers."""
        rules = f"rules:\n- regex: '^https?://{self.origin.ip}(:[0-9]+)?/shared\\.bin$'\n"
        trusted = f"backend:\n  upstreams:\n  - host: {self.origin.ip}\n    caCert: {self.authority.cert}\n"
        return self.swarm(names, proxy=rules, proxy_server=server, extra=trusted)[1:]

    def curl(self, daemon: Daemon, url: str, *args, output: str = "out") -> "Answer":
        """Runs curl to its end; asserts nothing."""
        path, headers = daemon.folder / output, daemon.folder / "headers"
        argv = ["curl", "--silent", "--show-error", "--proxy", daemon.proxy_url, "--max-time", str(QUIET), "--output", path,
                "--dump-header", headers, "--write-out", "%{json}", *args, url]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=2 * QUIET)
        return Answer(done, path, headers)

    def test_what_a_rule_names_is_shared_and_the_rest_is_passed_on(self):
        one, two = self.daemons(2)
        for daemon in (one, two):
            got = self.curl(daemon, f"{self.origin.url}/shared.bin")
            self.assertEqual((got.code, got.status), (0, 200), got.stderr)
            self.assertEqual(sha256(got.output), sha256(self.source))
            self.assertIn("x-dragonfly-task-id", got.headers)
            self.assertEqual(int(got.headers["content-length"]), SIZE)
        self.assert_read_once(self.origin, "shared.bin")
        again = self.curl(one, f"{self.origin.url}/shared.bin")
        self.assertEqual(again.headers.get("x-dragonfly-task-download-finished"), "true")
        self.assert_read_once(self.origin, "shared.bin")
        for _ in range(2):
            got = self.curl(one, f"{self.origin.url}/other.txt")
            self.assertEqual((got.code, got.status), (0, 200), got.stderr)
            self.assertNotIn("x-dragonfly-task-id", got.headers)
        self.assertEqual(self.origin.bytes_sent("other.txt"), 10_000)

    def test_a_held_file_needs_no_origin(self):
        [peer] = self.daemons()
        self.assertEqual(self.curl(peer, f"{self.origin.url}/shared.bin").code, 0)
        self.origin.process.stop()
        got = self.curl(peer, f"{self.origin.url}/shared.bin")
        self.assertEqual((got.code, got.status), (0, 200), got.stderr)
        self.assertEqual(sha256(got.output), sha256(self.source))
        got = self.curl(peer, f"{self.origin.url}/other.txt")
        self.assertEqual((got.code, got.status), (0, 502), "an origin that is away is a bad gateway")

    def test_head_and_errors_are_the_origins(self):
        [peer] = self.daemons()
        got = self.curl(peer, f"{self.origin.url}/shared.bin", "--head")
        self.assertEqual((got.code, got.status, int(got.headers["content-length"])), (0, 200, SIZE), got.stderr)
        (self.origin.www / "shared.bin").unlink()
        got = self.curl(peer, f"{self.origin.url}/shared.bin?other=task")
        self.assertEqual((got.code, got.status), (0, 404), got.stderr)
        self.assertEqual(got.headers.get("x-dragonfly-error-type"), "backend")

    def test_ranges_and_a_resumed_download(self):
        [peer] = self.daemons()
        url, content = f"{self.origin.url}/shared.bin", self.source.read_bytes()
        for spec, start, end in (("0-0", 0, 1), (f"{4 * MIB - 1}-{4 * MIB}", 4 * MIB - 1, 4 * MIB + 1), ("-10", SIZE - 10, SIZE),
                                 (f"{8 * MIB}-", 8 * MIB, SIZE)):
            got = self.curl(peer, url, "--range", spec)
            self.assertEqual((got.code, got.status), (0, 206), f"{spec}: {got.stderr}")
            self.assertEqual(got.output.read_bytes(), content[start:end], spec)
            self.assertEqual(got.headers["content-range"], f"bytes {start}-{end - 1}/{SIZE}")
        got = self.curl(peer, url, "--range", f"{SIZE}-{SIZE + 5}")
        self.assertEqual((got.status, got.headers.get("content-range")), (416, f"bytes */{SIZE}"))
        partial = peer.folder / "partial"
        partial.write_bytes(content[:5 * MIB])
        got = self.curl(peer, url, "--continue-at", "-", output="partial")
        self.assertEqual((got.code, got.status), (0, 206), got.stderr)
        self.assertEqual(sha256(partial), sha256(self.source))
        self.assert_read_once(self.origin, "shared.bin", times=1.01)

    def test_small_content_is_read_once_too(self):
        # Files of less than a piece, and ranges of less than one.
        peers = self.daemons(3)
        self.source.write_bytes(self.source.read_bytes()[:100_000])
        with ThreadPoolExecutor() as pool:
            for got in pool.map(lambda peer: self.curl(peer, f"{self.origin.url}/shared.bin"), peers):
                self.assertEqual((got.code, got.status, sha256(got.output)), (0, 200, sha256(self.source)), got.stderr)
        self.assert_read_once(self.origin, "shared.bin")

    def test_ranges_that_a_seed_holds(self):
        # Pieces here and there: a seed that deals a content out from its beginning shows them when they are asked for.
        self.origin.file("shared.bin", 64 * MIB)
        [peer] = self.daemons()
        url, content = f"{self.origin.url}/shared.bin", self.source.read_bytes()
        self.assertEqual(self.curl(self.cluster.daemons[0], url).code, 0)
        before = self.origin.bytes_sent("shared.bin")
        for start in (9_000_000, 20_000_000, 60_000_000, 30_000_000):
            got = self.curl(peer, url, "--range", f"{start}-{start + 99_999}")
            self.assertEqual((got.code, got.status), (0, 206), got.stderr)
            self.assertEqual(got.output.read_bytes(), content[start:start + 100_000])
        self.assertLess(self.origin.bytes_sent("shared.bin"), before + PIECE, "the origin was read for what the seed holds")
        # And the rest, when all of it is wanted.
        got = self.curl(peer, url)
        self.assertEqual((got.code, got.status, sha256(got.output)), (0, 200, sha256(self.source)), got.stderr)
        self.assertLess(self.origin.bytes_sent("shared.bin"), before + PIECE, "the origin was read for what the seed holds")

    def test_conditional_requests(self):
        [peer] = self.daemons()
        for name in ("shared.bin", "other.txt"):
            tag = peer.folder / f"{name}.etag"
            first = self.curl(peer, f"{self.origin.url}/{name}", "--etag-save", tag)
            self.assertEqual((first.code, first.status), (0, 200), first.stderr)
            again = self.curl(peer, f"{self.origin.url}/{name}", "--etag-compare", tag, output="again")
            self.assertEqual((again.code, again.status), (0, 304), f"{name}: {again.stderr}")

    def test_many_requests_over_one_connection(self):
        [peer] = self.daemons()
        urls = [f"{self.origin.url}/{name}" for name in ("shared.bin", "other.txt", "missing", "shared.bin", "other.txt")]
        argv = ["curl", "--silent", "--show-error", "--proxy", peer.proxy_url, "--write-out", "%{http_code} %{num_connects}\n"]
        for url in urls:
            argv += ["--output", "/dev/null", url]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=QUIET)
        self.assertEqual(done.stdout.splitlines(), ["200 1", "200 0", "404 0", "200 0", "200 0"], done.stderr)

    def test_https_is_intercepted_for_named_hosts_only(self):
        ours = Authority(self.cluster.folder / "ours", "the daemon's CA")
        [peer] = self.daemons(server=f"caCert: {ours.cert}\ncaKey: {ours.key}\n")
        url = f"{self.origin.tls_url}/shared.bin"
        got = self.curl(peer, url, "--cacert", ours.cert)
        self.assertEqual((got.code, got.status), (0, 200), got.stderr)
        self.assertEqual(sha256(got.output), sha256(self.source))
        self.assertIn("x-dragonfly-task-id", got.headers)
        # Another host: no rule names it, so the client speaks with the origin itself.
        stranger = Origin(self.cluster.folder / "stranger", self.cluster.ip(), authority=self.authority)
        self.cluster.processes.append(stranger.process)
        stranger.file("shared.bin", 1000)
        got = self.curl(peer, f"{stranger.tls_url}/shared.bin", "--cacert", self.authority.cert)
        self.assertEqual((got.code, got.status), (0, 200), got.stderr)
        self.assertNotIn("x-dragonfly-task-id", got.headers)


class Answer:
    """What curl has told: `headers` are those of the last answer, with their names in lower case."""

    def __init__(self, done: subprocess.CompletedProcess, output: Path, headers: Path):
        self.code, self.stderr, self.output = done.returncode, done.stderr, output
        self.status = json.loads(done.stdout)["http_code"]
        block = headers.read_text().strip().split("\n\n")[-1]
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines()[1:])}
