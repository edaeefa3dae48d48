"""What a user is told when something is wrong: within seconds, in clear words, and with nothing left behind."""

import contextlib
import os
import re
import socket
import socketserver
import threading
import time

from harness import Daemon, wait_until
from harness.cluster import sha256

from .support import MIB, PIECE, PROMPT, QUIET, SystemTest, needs_root

# Exit codes of dfget, as its help tells them.
FAILED, NO_DAEMON, ORIGIN, OUTPUT, DIGEST, TIMEOUT = 1, 3, 4, 5, 6, 7
# An origin that says nothing at all is given up after its limit: 15 to 20 s, on a busy machine.
STALL_MAX = 45


@contextlib.contextmanager
def server(ip: str, talk):
    """A server on `ip` whose connections are handled by `talk(socket)`; gives its base URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                talk(self.request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server((ip, 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://{ip}:{running.server_address[1]}"
        finally:
            running.shutdown()


def head_of(connection: socket.socket) -> bytes:
    """The next request's head; empty when the other side has closed."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(4096)
        if not more:
            return b""
        head += more
    return head


def begin_answer(connection: socket.socket, size: int = 24 * MIB) -> bool:
    """Answers requests for a file of `size` bytes until one is for more than 100 kB: of that it sends only as much."""
    while head := head_of(connection):
        start, end = map(int, re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head).groups())
        length = end + 1 - start
        connection.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
                           % (length, start, end, size) + bytes(min(length, 100_000)))
        if length > 100_000:
            return True
    return False


class Origins(SystemTest):
    """Origins that do not deliver. A seed reads them first, as in every swarm."""

    def setUp(self):
        super().setUp()
        _seed, self.peer = self.swarm(1)
        self.out = self.cluster.folder / "outputs"
        self.out.mkdir()

    def refused(self, url: str, code: int, *words: str, args: tuple = (), seconds: float = PROMPT) -> None:
        got = self.peer.dfget(url, self.out / "f", *args, seconds=QUIET)
        self.assert_refused(got, code, *words, seconds=seconds)
        self.assertEqual(list(self.out.iterdir()), [], "something was left beside the output")

    def test_not_found(self):
        origin = self.cluster.origin()
        self.refused(f"{origin.url}/nothing-here", ORIGIN, "404")

    def test_forbidden_and_broken(self):
        origin = self.cluster.origin(extra="location /secret { return 403; } location /broken { return 500; }")
        self.refused(f"{origin.url}/secret", ORIGIN, "403")
        self.refused(f"{origin.url}/broken", ORIGIN, "500")

    def test_a_host_that_does_not_resolve(self):
        self.refused("http://no-such-host.invalid/f", ORIGIN, "no-such-host.invalid", "resolve", seconds=30)

    def test_nobody_listens(self):
        self.refused(f"http://{self.cluster.ip()}:9/f", ORIGIN, "refused")

    def test_an_unknown_scheme(self):
        got = self.peer.dfget("gopher://example.invalid/f", self.out / "f")
        self.assertNotEqual(got.code, 0)
        self.assertIn("gopher", got.stderr)

    def test_a_server_that_says_nothing(self):
        ended = threading.Event()
        with server(self.cluster.ip(), lambda _connection: ended.wait(2 * QUIET)) as url:
            self.refused(f"{url}/f", ORIGIN, "sent nothing for", "waiting for its answer", seconds=STALL_MAX)
            self.refused(f"{url}/g", TIMEOUT, "--timeout", args=("--timeout", "2s"), seconds=8)
            ended.set()

    def test_a_server_that_stops_in_the_middle(self):
        ended = threading.Event()

        def talk(connection: socket.socket) -> None:
            while begin_answer(connection):
                ended.wait(2 * QUIET)

        with server(self.cluster.ip(), talk) as url:
            self.refused(f"{url}/f", ORIGIN, "sent nothing for", seconds=2 * STALL_MAX)
            ended.set()

    def test_a_server_that_closes_in_the_middle(self):
        with server(self.cluster.ip(), begin_answer) as url:
            self.refused(f"{url}/f", ORIGIN, "the connection broke after", seconds=30)

    def test_a_wrong_digest(self):
        origin = self.cluster.origin()
        source = origin.file("f", 9 * MIB)
        wrong = "sha256:" + "0" * 64
        self.refused(f"{origin.url}/f", DIGEST, "digest", sha256(source), args=("--digest", wrong))
        right = self.peer.dfget(f"{origin.url}/f", self.out / "f", "--digest", f"sha256:{sha256(source)}")
        self.assertEqual(right.code, 0, right.stderr)
        self.assert_read_once(origin, "f")


class Outputs(SystemTest):
    """Places where the output cannot be put."""

    def setUp(self):
        super().setUp()
        self.origin = self.cluster.origin()
        self.source = self.origin.file("f", 5 * MIB)
        self.url = f"{self.origin.url}/f"
        self.peer = self.cluster.daemon("peer", schedulers=[self.cluster.scheduler()]).ready()

    def test_it_exists(self):
        output = self.cluster.folder / "there"
        output.write_text("mine")
        got = self.peer.dfget(self.url, output)
        self.assertEqual(got.code, OUTPUT, got.stderr)
        self.assertLess(got.seconds, PROMPT)
        self.assertIn("--overwrite", got.stderr)
        self.assertEqual(output.read_text(), "mine")
        got = self.peer.dfget(self.url, output, "--overwrite")
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(output), sha256(self.source))

    def test_its_folder_is_missing(self):
        got = self.peer.dfget(self.url, self.cluster.folder / "no" / "such" / "f")
        self.assert_refused(got, OUTPUT, "no/such", "directory does not exist")

    @needs_root("another user")
    def test_its_folder_is_not_ours(self):
        folder = self.cluster.folder / "root-only"
        folder.mkdir(mode=0o755)
        self.peer.socket.chmod(0o666)
        self.peer.folder.chmod(0o755)
        got = self.peer.dfget(self.url, folder / "f", prefix=self.nobody())
        self.assert_refused(got, OUTPUT, "permission", "root-only")
        self.assertEqual(list(folder.iterdir()), [])


class Daemons(SystemTest):
    """Daemons that cannot start or cannot store."""

    def refused(self, daemon: Daemon, *words: str) -> str:
        """It ends by itself, promptly, with an error that has these words."""
        began = time.monotonic()
        code = daemon.process.wait(PROMPT)
        self.assertLess(time.monotonic() - began, PROMPT)
        text = daemon.process.text()
        self.assertNotEqual(code, 0, text)
        self.assertNotIn("panicked", text)
        for word in words:
            self.assertIn(word.lower(), text.lower())
        self.assertFalse(daemon.socket.exists(), "the socket file is left")
        return text

    @needs_root("a filesystem of its own")
    def test_a_full_disk(self):
        origin = self.cluster.origin()
        origin.file("big", 48 * MIB)
        small = origin.file("small", 6 * MIB)
        storage = self.cluster.tmpfs("disk", 24 * MIB)
        daemon = self.cluster.daemon("peer", schedulers=[self.cluster.scheduler()], storage=storage).ready()
        got = daemon.dfget(f"{origin.url}/big", self.output(daemon))
        self.assert_refused(got, FAILED, "space")
        self.assertEqual(origin.bytes_sent("big"), 1, "the origin was read for what cannot be stored")
        got = daemon.dfget(f"{origin.url}/small", self.output(daemon, "small"))
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(got.output), sha256(small))

    @needs_root("another user")
    def test_a_data_folder_without_permission(self):
        folder = self.cluster.folder / "root-only"
        folder.mkdir(mode=0o755)
        # All but the data folder is the other user's own.
        for own in ("peer", "peer/storage"):
            (self.cluster.folder / own).mkdir()
            os.chown(self.cluster.folder / own, 65534, 65534)
        daemon = self.cluster.daemon("peer", storage=folder, prefix=self.nobody())
        self.refused(daemon, "root-only", "permission denied")

    def test_a_port_in_use(self):
        for port in (4000, 4005, 4002):
            with self.subTest(port=port), socket.socket() as taken:
                ip = self.cluster.ip()
                taken.bind((ip, port))
                taken.listen()
                daemon = self.cluster.daemon(f"peer{port}", ip=ip)
                self.refused(daemon, f"{ip}:{port}", "in use")

    def test_a_socket_in_use(self):
        first = self.cluster.daemon("first").ready()
        second = self.cluster.daemon("second", ip=self.cluster.ip(), socket=first.socket)
        code = second.process.wait(PROMPT)
        self.assertNotEqual(code, 0)
        self.assertIn("dfdaemon.sock", second.process.text())
        first.ready()

    def test_a_storage_folder_in_use(self):
        first = self.cluster.daemon("first").ready()
        second = self.cluster.daemon("second", storage=first.storage)
        self.refused(second, "storage", "in use by process")
        first.ready()

    def test_a_misspelt_key_is_a_warning_with_a_suggestion(self):
        daemon = self.cluster.daemon("peer", extra="gc:\n  intervall: 5m\n").ready()
        warnings = [line for line in daemon.process.text().splitlines() if "WARN" in line and "intervall" in line]
        self.assertEqual(len(warnings), 1, daemon.process.text())
        for word in ("dfdaemon.yaml:", "gc.intervall", "interval"):
            self.assertIn(word, warnings[0])
        self.assertRegex(warnings[0], r"mean\S* .?(gc\.)?interval\b")

    def test_wrong_values_are_all_told_with_their_place(self):
        daemon = self.cluster.daemon("peer", extra="gc:\n  interval: soon\n  policy:\n    distHighThresholdPercent: 900\n")
        lines = (daemon.folder / "dfdaemon.yaml").read_text().splitlines()
        text = self.refused(daemon, "gc.interval", "gc.policy.distHighThresholdPercent", "soon", "900")
        for value in ("interval: soon", "distHighThresholdPercent: 900"):
            number = next(number for number, line in enumerate(lines, 1) if value in line)
            self.assertIn(f"dfdaemon.yaml:{number}", text)

    def test_a_configuration_that_is_no_yaml(self):
        daemon = self.cluster.daemon("peer").ready()
        self.assertEqual(daemon.stop(), 0, daemon.process.text())
        (daemon.folder / "dfdaemon.yaml").write_text("host: [")
        daemon.run()
        self.refused(daemon, "dfdaemon.yaml:", "not valid yaml")

    def test_no_daemon_at_the_socket(self):
        daemon = self.cluster.daemon("peer").ready()
        self.assertEqual(daemon.stop(), 0)
        self.assertFalse(daemon.socket.exists(), "the socket file is left")
        got = daemon.dfget("http://example.invalid/f", self.output(daemon))
        self.assert_refused(got, NO_DAEMON, "dfdaemon", str(daemon.socket), seconds=5)
        self.assertEqual(len(got.stderr.strip().splitlines()), 1, got.stderr)

    def test_a_signal_during_the_start_ends_it_in_order(self):
        for number in range(8):
            daemon = self.cluster.daemon(f"peer{number}")
            wait_until(lambda: (daemon.storage / "LOCK").exists(), PROMPT, "it is starting")
            self.assertEqual(daemon.stop(), 0, daemon.process.text())
            self.assertFalse(daemon.socket.exists(), "the socket file is left")
