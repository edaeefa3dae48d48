"""Clients of the proxy, over real processes: nginx as origin, a scheduler, and daemons that share what they read of it."""

import contextlib
import hashlib
import http.client
import http.server
import os
import socket
import subprocess
import threading
import unittest

from harness import Cluster, Daemon, Origin, wait_until
from harness.netns import Network
from .support import MIB, PIECE, QUIET, needs_root

RULES = """rules:
  - regex: '.*'
"""


class Answer:
    """What a client got: `complete` says whether it was as long as announced."""

    def __init__(self, status: int, headers: dict, body: bytes, complete: bool):
        self.status, self.headers, self.body, self.complete = status, headers, body, complete


def ask(daemon: Daemon, url: str, method: str = "GET", **headers: str) -> Answer:
    """One request to the daemon's proxy."""
    connection = http.client.HTTPConnection(daemon.ip, 4001, timeout=QUIET)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, url, headers=named)
        response = connection.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        body, complete = b"", True
        try:
            body = response.read()
        except (http.client.IncompleteRead, ConnectionError) as error:
            body, complete = getattr(error, "partial", b""), False
        return Answer(response.status, told, body, complete)
    finally:
        connection.close()


class ProxyCase(unittest.TestCase):
    def setUp(self):
        self.cluster = self.enterContext(Cluster())
        self.origin: Origin = self.cluster.origin()
        self.scheduler = self.cluster.scheduler()

    def daemon(self, name: str, **options) -> Daemon:
        daemon = self.cluster.daemon(name, schedulers=[self.scheduler], proxy=RULES, **options).ready()
        wait_until(lambda: socket.socket().connect_ex((daemon.ip, 4001)) == 0, QUIET, f"{name} serves its proxy")
        return daemon

    def daemons(self, count: int) -> list[Daemon]:
        daemons = [self.daemon(f"host{number}") for number in range(count)]
        names = {daemon.name for daemon in daemons}
        wait_until(lambda: self.cluster.hosts(self.scheduler) >= names, QUIET, "the scheduler knows all")
        return daemons

    def blob(self, size: int) -> tuple[str, bytes]:
        """A file that a digest names, as a registry would serve it."""
        content = os.urandom(size)
        name = f"v2/image/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
        path = self.origin.www / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name, content

    def at_once(self, daemons: list[Daemon], name: str, **headers: str) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(daemons)

        def one(number: int) -> None:
            answers[number] = ask(daemons[number], f"{self.origin.url}/{name}", **headers)

        threads = [threading.Thread(target=one, args=[number]) for number in range(len(daemons))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


class ProxyTest(ProxyCase):
    def test_each_file_leaves_the_origin_once(self):
        """Three hosts at once: a large file, a small one, and one that a digest names."""
        daemons = self.daemons(3)
        files = [("large", 5 * PIECE + 77), ("small", 20_000)]
        contents = {name: self.origin.file(name, size).read_bytes() for name, size in files}
        blob, content = self.blob(3 * PIECE + 1)
        contents[blob] = content
        for name, content in contents.items():
            with self.subTest(name):
                for answer in self.at_once(daemons, name):
                    self.assertEqual((answer.status, answer.complete), (200, True))
                    self.assertEqual(hashlib.sha256(answer.body).digest(), hashlib.sha256(content).digest())
                # For each host one byte to know what there is, and 96 by which the origin shows that it has what a digest names.
                self.assertLessEqual(self.origin.bytes_sent(name), len(content) + len(daemons) * 97)

    def test_ranges_are_read_from_a_neighbour(self):
        first, second = self.daemons(2)
        content = self.origin.file("f", 3 * PIECE).read_bytes()
        url = f"{self.origin.url}/f"
        self.assertTrue(ask(first, url).complete)
        sent = self.origin.bytes_sent("f")
        answer = ask(second, url, range="bytes=5000000-5131071")
        self.assertEqual(answer.status, 206)
        self.assertEqual(answer.headers["content-range"], f"bytes 5000000-5131071/{len(content)}")
        self.assertEqual(answer.body, content[5_000_000:5_131_072])
        self.assertLessEqual(self.origin.bytes_sent("f"), sent + 2)
        self.assertEqual(ask(second, url, range=f"bytes={len(content)}-").status, 416)

    def test_small_parts_come_past_their_pieces(self):
        """A reader of small parts here and there gets them at once; the pieces around them follow when it pauses."""
        first, second = self.daemons(2)
        pieces, length = 24, 128 << 10
        content = self.origin.file("f", pieces * PIECE).read_bytes()
        url = f"{self.origin.url}/f"
        self.assertTrue(ask(first, url).complete)
        sent = self.origin.bytes_sent("f")
        # The first one brings the two hosts together; one lies in two pieces.
        starts = [10, *(piece * PIECE + 3_000_000 for piece in range(2, 20)), 22 * PIECE - 1000]
        for start in starts:
            answer = ask(second, url, range=f"bytes={start}-{start + length - 1}")
            self.assertEqual(answer.status, 206)
            self.assertEqual(answer.body, content[start:start + length], f"at {start}")
        whole = 21 * PIECE
        wait_until(lambda: second.received() >= whole, QUIET, "the pieces around the parts are here")
        past = second.received() - whole
        self.assertTrue(10 * length <= past <= len(starts) * length, f"{past} bytes came past the pieces")
        self.assertLessEqual(self.origin.bytes_sent("f"), sent + 2)
        # Whoever gave the parts is gone: they come from the pieces now, and the rest from the origin.
        first.stop()
        self.assertEqual(ask(second, url, range="bytes=3000000-3999999").body, content[3_000_000:4_000_000])
        self.assertEqual(ask(second, url).body, content)

    def test_a_slow_reader_and_one_that_goes_away_hold_up_nobody(self):
        daemon = self.daemon("host")
        content = self.origin.file("f", 10 * PIECE).read_bytes()
        url = f"{self.origin.url}/f"
        request = f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with socket.create_connection((daemon.ip, 4001)) as slow:
            slow.sendall(request)
            with socket.create_connection((daemon.ip, 4001)) as gone:
                gone.sendall(request)
                gone.recv(100)
            quick = ask(daemon, url)
            self.assertEqual(quick.body, content)
            self.assertEqual(slow.recv(12), b"HTTP/1.1 200")
            self.assertLess(daemon.process.rss_mib_max(), 200)
        self.assertLessEqual(self.origin.bytes_sent("f"), len(content) + 16)

    def test_what_a_digest_names_is_served_without_its_origin(self):
        """Also by a host that never asked the origin: its neighbour says that it is public."""
        first = self.daemon("first")
        blob, content = self.blob(2 * PIECE + 5)
        url = f"{self.origin.url}/{blob}"
        self.assertEqual(ask(first, url).body, content)
        self.origin.process.stop()
        warm = ask(first, url)
        self.assertEqual(warm.headers.get("x-dragonfly-task-download-finished"), "true")
        self.assertEqual(warm.body, content)
        second = self.daemon("second")
        cold = ask(second, url)
        self.assertEqual((cold.status, cold.complete), (200, True), cold.body[:300])
        self.assertEqual(cold.body, content)
        absent = ask(second, f"{self.origin.url}/v2/image/blobs/sha256:{'0' * 64}")
        self.assertGreaterEqual(absent.status, 500)

    def test_other_bytes_than_the_digest_says_are_not_given_out(self):
        daemon = self.daemon("host")
        blob, content = self.blob(3 * PIECE)
        path = self.origin.www / blob
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        url = f"{self.origin.url}/{blob}"
        torso = ask(daemon, url)
        self.assertFalse(torso.complete and torso.status == 200)
        self.assertLessEqual(len(torso.body), 2 * PIECE)
        wait_until(lambda: "it was deleted" in daemon.process.text(), QUIET, "the daemon says what it did with the bytes")
        # The origin was mended: nothing of the bad content is left.
        path.write_bytes(content)
        self.assertEqual(ask(daemon, url).body, content)

    def test_the_origin_breaks_down_in_the_middle(self):
        """What fails late breaks the connection."""
        slow = self.cluster.origin(extra="location /slow { limit_rate 2m; }")
        slow.file("slow", 20 * MIB)
        daemon = self.daemon("host")
        request = f"GET {slow.url}/slow HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with socket.create_connection((daemon.ip, 4001), timeout=QUIET) as client:
            client.sendall(request)
            got = len(client.recv(1 << 16))
            self.assertGreater(got, 0)
            slow.process.stop()
            try:
                while part := client.recv(1 << 20):
                    got += len(part)
            except ConnectionResetError:
                pass
        self.assertLess(got, 20 * MIB)


if __name__ == "__main__":
    unittest.main()


class Varying(http.server.ThreadingHTTPServer):
    """An origin whose answer is what `content(headers)` says: bytes, and further headers. `seen` has the headers of each request."""

    daemon_threads = True

    def __init__(self, ip: str, content):
        self.content, self.seen = content, []
        super().__init__((ip, 0), self.Handler)
        self.url = f"http://{ip}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.server.seen.append((self.path, dict(self.headers)))
            found = self.server.content(self.headers)
            if found is None:
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body, headers = found
            if self.headers["If-Match"] not in (None, headers.get("ETag")):
                self.send_response(412)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked, length = self.headers["Range"], len(body)
            if asked:
                start, _, end = asked.removeprefix("bytes=").partition("-")
                start, end = int(start), min(int(end or length - 1), length - 1)
                body = body[start:end + 1]
                headers = {**headers, "Content-Range": f"bytes {start}-{end}/{length}"}
            if callable(headers.get("Content-Digest")):
                headers = {**headers, "Content-Digest": headers["Content-Digest"](body)}
            self.send_response(206 if asked else 200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_words):
            pass


class WhoGetsWhat(ProxyCase):
    """Contents that are not for everybody, and origins that change or lie."""

    def origin_of(self, content) -> Varying:
        origin = Varying(self.cluster.ip(), content)
        self.addCleanup(origin.server_close)
        self.addCleanup(origin.shutdown)
        return origin

    def test_a_registry_that_says_yes_to_every_digest_gets_nobody_anything(self):
        one, two = self.daemons(2)
        private = os.urandom(PIECE + 5)
        path = f"/v2/team/app/blobs/sha256:{hashlib.sha256(private).hexdigest()}"
        true = self.origin_of(lambda headers: (private, {}) if headers["Authorization"] == "Basic owner" else None)
        self.assertEqual(ask(one, true.url + path, Authorization="Basic owner").body, private)
        self.assertEqual(ask(one, true.url + path).status, 401)
        for liar in (b"x", b"x" * len(private), os.urandom(len(private))):
            evil = self.origin_of(lambda _headers, liar=liar: (liar, {}))
            for daemon in (one, two):
                for method in ("HEAD", "GET"):
                    self.assertNotEqual(ask(daemon, evil.url + path, method).body, private)
                # Neither is it public now, nor broken.
                self.assertEqual(ask(daemon, true.url + path).status, 401)
                self.assertEqual(ask(daemon, true.url + path, Authorization="Basic owner").body, private)
        # Who knows the beginning cannot have the rest for it, whatever he asks for first.
        guess = private[:4200] + bytes(len(private) - 4200)
        knowing = self.origin_of(lambda _headers: (guess, {}))
        for daemon in (one, two):
            for last in (0, 31, 4199, 2 * MIB):
                part = ask(daemon, knowing.url + path, Range=f"bytes=0-{last}").body
                self.assertEqual(part, guess[:last + 1])
                self.assertNotEqual(ask(daemon, knowing.url + path).body, private)
                self.assertEqual(ask(daemon, true.url + path).status, 401)
        # Another registry that does have it may give it to its own.
        mirror = self.origin_of(lambda headers: (private, {}) if headers["Authorization"] == "Basic other" else None)
        for daemon in (one, two):
            self.assertEqual(ask(daemon, mirror.url + path, Authorization="Basic other").body, private)
            self.assertEqual(ask(daemon, mirror.url + path, Authorization="Basic owner").status, 401)
        read = [headers.get("Range") for _, headers in mirror.seen if headers.get("Authorization") == "Basic other"]
        self.assertNotIn(None, read, "it came from the swarm but for a few bytes")

    def test_everybody_gets_his_own(self):
        daemon, = self.daemons(1)

        def account(headers):
            name = headers["Authorization"] or "nobody"
            return f"account of {name} ".encode() * 10_000, {"ETag": f'"{name}"', "Cache-Control": "private", "Vary": "Authorization"}

        def plain(headers):
            return f"page for {headers['Accept']} ".encode() * 10_000, {"ETag": f'"{headers["Accept"]}"', "Vary": "Accept"}

        for content, name in ((account, "Authorization"), (plain, "Accept")):
            origin = self.origin_of(content)
            for _ in range(2):
                for value in ("alice", "bob", "text/x", "text/y"):
                    got = ask(daemon, f"{origin.url}/mine", **{name: value})
                    self.assertEqual((got.status, got.body), (200, content({"Authorization": value, "Accept": value})[0]), value)

    def test_an_origin_that_changes_is_read_anew_and_never_mixed(self):
        one, two = self.daemons(2)
        versions = [(os.urandom(3 * PIECE), {"ETag": f'"{number}"'}) for number in range(3)]
        now = 0
        origin = self.origin_of(lambda _headers: versions[now])
        url = f"{origin.url}/f"
        self.assertEqual(ask(one, url, Range="bytes=0-99").body, versions[0][0][:100])
        wait_until(lambda: one.received() >= PIECE, QUIET, "a part of the first version is here")
        now = 1
        got = ask(two, url)
        self.assertEqual((got.status, got.complete, got.body), (200, True, versions[1][0]))
        self.assertEqual(got.headers["etag"], '"1"')
        # The host with a part of the first version: at most one answer breaks off.
        answers = [ask(one, url) for _ in range(3)]
        self.assertTrue(all(answer.body == versions[1][0] for answer in answers[1:]), [answer.status for answer in answers])
        self.assertIn(answers[0].complete, (False, answers[0].body == versions[1][0]))
        # A whole one is looked at again when its client asks for that.
        now = 2
        for daemon in (one, two):
            self.assertEqual(ask(daemon, url, Cache_Control="no-cache").body, versions[2][0])

    def test_conditions_about_what_the_origin_has_are_for_the_origin(self):
        daemon, = self.daemons(1)
        versions = [(os.urandom(MIB), {"ETag": f'"{number}"'}) for number in range(2)]
        now = 0
        origin = self.origin_of(lambda _headers: versions[now])
        url = f"{origin.url}/f"
        self.assertEqual(ask(daemon, url).body, versions[0][0])
        now = 1
        part = ask(daemon, url, If_Match='"1"', Range="bytes=0-9")
        self.assertEqual((part.status, part.body), (206, versions[1][0][:10]))
        self.assertEqual(ask(daemon, url, If_Match='"0"').status, 412)

    def test_a_question_with_a_body_is_not_the_question_without(self):
        daemon, = self.daemons(1)
        origin = self.origin_of(lambda headers: (b"asked with %s bytes" % (headers["Content-Length"] or "no").encode(), {"ETag": '"1"'}))
        for body, told in ((None, b"no"), (b"one", b"3"), (b"three", b"5"), (None, b"no")):
            connection = http.client.HTTPConnection(daemon.ip, 4001, timeout=QUIET)
            self.addCleanup(connection.close)
            connection.request("GET", f"{origin.url}/search", body=body)
            self.assertEqual(connection.getresponse().read(), b"asked with %s bytes" % told)

    def test_a_digest_of_one_byte_is_not_the_digest_of_all(self):
        daemon, = self.daemons(1)
        content = os.urandom(MIB)
        origin = self.origin_of(lambda _headers: (content, {"ETag": '"1"', "Content-Digest": lambda body: hashlib.sha256(body).hexdigest()}))
        for _ in range(2):
            got = ask(daemon, f"{origin.url}/f")
            self.assertEqual(got.body, content)
            self.assertIn(got.headers.get("content-digest"), (None, hashlib.sha256(content).hexdigest()))


@needs_root("network namespaces")
class OtherHostTest(unittest.TestCase):
    """To clients on other hosts the kernel sends by itself; those on this host, as everywhere else in these tests, get copies."""

    def test_whole_answers_ranges_and_one_connection_for_all(self):
        network, cluster = self.enterContext(Network()), self.enterContext(Cluster())
        (near, ip), (far, _) = network.host(), network.host()
        origin = Origin(cluster.folder / "origin", ip, netns=near)
        cluster.processes.append(origin.process)
        scheduler = cluster.scheduler(ip=ip, netns=near)
        daemon = cluster.daemon("host", ip=ip, netns=near, schedulers=[scheduler], proxy=RULES).ready()
        content = origin.file("f", 5 * PIECE + 4321).read_bytes()
        url = f"{origin.url}/f"
        wanted = [(0, len(content)), (1, 200_000), (PIECE - 70_000, PIECE + 140_000), (len(content) - 100_000, len(content))]
        outputs = [cluster.folder / f"out{number}" for number in range(2 * len(wanted))]
        words = ["ip", "netns", "exec", far, "curl", "-sS", "--fail", "--proxy", daemon.proxy_url]
        # Twice: while it arrives, and held. All over one connection.
        for number, output in enumerate(outputs):
            start, end = wanted[number % len(wanted)]
            part = [] if end - start == len(content) else ["-r", f"{start}-{end - 1}"]
            words += ["-o", str(output), *part, url] if number == 0 else ["--next", "-sS", "--fail", "--proxy", daemon.proxy_url,
                                                                        "-o", str(output), *part, url]
        subprocess.run(words, check=True, timeout=QUIET)
        for number, output in enumerate(outputs):
            start, end = wanted[number % len(wanted)]
            self.assertEqual(hashlib.sha256(output.read_bytes()).digest(), hashlib.sha256(content[start:end]).digest(), f"{start} to {end}")
