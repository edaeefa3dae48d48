"""What a swarm does when nothing goes wrong."""

import contextlib
import http.server
import os
import subprocess
import threading
import time

from harness.cluster import sha256

from .support import MIB, PIECE, QUIET, SystemTest


class Swarm(SystemTest):
    def test_four_peers_at_once_read_the_origin_once(self):
        origin = self.cluster.origin()
        seed, *peers = self.swarm(4)
        for name in ("first", "second"):
            origin.file(name, 64 * MIB + 12345)
            self.fetch_all(peers, origin, name)
            self.assert_read_once(origin, name)
        self.assertGreater(sum(seed.metric("dragonfly_client_upload_traffic").values()), 0, "the seed served nothing")

    def test_a_late_peer_reads_from_an_earlier_one(self):
        origin = self.cluster.origin()
        origin.file("f", 48 * MIB)
        seed, early, late = self.swarm(2)
        self.fetch_all([early], origin, "f")
        self.assertEqual(seed.stop(), 0, seed.process.text()[-2000:])
        got = late.dfget(f"{origin.url}/f", self.output(late), seconds=QUIET)
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(got.output), sha256(origin.www / "f"))
        self.assert_read_once(origin, "f")

    def test_an_origin_that_pauses_is_read_once(self):
        """A seed that has nothing to pass on for a while is not frozen, and nobody else may bother the origin."""
        content, sent = os.urandom(6 * MIB), []

        class Pausing(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                start, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
                self.send_header("Content-Length", str(end + 1 - start))
                self.send_header("ETag", '"one"')
                self.end_headers()
                with contextlib.suppress(OSError):
                    for at in range(start, end + 1, MIB):
                        # Longer than a host without a sign of life is waited for.
                        time.sleep(3 if at > start else 0)
                        part = content[at:min(at + MIB, end + 1)]
                        self.wfile.write(part)
                        sent.append(len(part))

            def log_message(self, *_words):
                pass

        _seed, *peers = self.swarm(2)
        with http.server.ThreadingHTTPServer((self.cluster.ip(), 0), Pausing) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://{server.server_address[0]}:{server.server_address[1]}/f"
            running = [peer.start_dfget(url, self.output(peer)) for peer in peers]
            for peer, process in zip(peers, running):
                self.assertEqual(process.wait(QUIET), 0, process.text())
                self.assertEqual(self.output(peer).read_bytes(), content)
            server.shutdown()
        # Each host looks at the first byte before it begins.
        self.assertLessEqual(sum(sent), len(content) + 16, "the origin was read more than once")

    def test_content_of_unknown_length(self):
        # A chunked answer, also to HEAD and to a range: the length is only known at the end.
        content = os.urandom(5 * MIB + 321)

        class Chunked(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                # A caller that only wants to know the facts hangs up.
                with contextlib.suppress(OSError):
                    for start in range(0, len(content), 100_000):
                        part = content[start:start + 100_000]
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_words):
                pass

        _seed, *peers = self.swarm(2)
        with http.server.ThreadingHTTPServer((self.cluster.ip(), 0), Chunked) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://{server.server_address[0]}:{server.server_address[1]}/chunked"
            for peer in peers:
                got = peer.dfget(url, self.output(peer), seconds=QUIET)
                self.assertEqual(got.code, 0, got.stderr)
                self.assertEqual(got.output.read_bytes(), content)
            server.shutdown()

    def test_callers_join_a_running_download(self):
        origin = self.cluster.origin(extra="limit_rate 6m;")
        source = origin.file("f", 32 * MIB)
        daemon = self.cluster.daemon("peer", schedulers=[self.cluster.scheduler()]).ready()
        url = f"{origin.url}/f"
        first = daemon.start_dfget(url, self.output(daemon, "one"))
        self.cluster.wait_for_bytes([daemon], 1)
        second = daemon.start_dfget(url, self.output(daemon, "two"))
        for process, name in ((first, "one"), (second, "two")):
            self.assertEqual(process.wait(QUIET), 0, process.text())
            self.assertEqual(sha256(self.output(daemon, name)), sha256(source))
        self.assert_read_once(origin, "f")
        self.assertEqual(daemon.received(), 32 * MIB, "pieces were received twice")

    def test_what_is_held_is_answered_without_anybody(self):
        origin = self.cluster.origin()
        source = origin.file("f", 9 * MIB)
        scheduler = self.cluster.scheduler()
        daemon = self.cluster.daemon("peer", schedulers=[scheduler]).ready()
        self.fetch_all([daemon], origin, "f")
        origin.process.stop()
        self.cluster.process("scheduler").kill()
        got = daemon.dfget(f"{origin.url}/f", self.output(daemon, "again"))
        self.assertEqual(got.code, 0, got.stderr)
        self.assertLess(got.seconds, 5)
        self.assertEqual(sha256(got.output), sha256(source))

    def test_ranges(self):
        size = 40 * MIB + 777
        origin = self.cluster.origin()
        content = origin.file("f", size).read_bytes()
        _seed, one, two = self.swarm(2)
        ranges = [(0, 0), (PIECE - 1, PIECE), (5 * MIB, 30 * MIB), (size - 100, size - 1)]
        for peer in (one, two):
            for start, end in ranges:
                output = self.output(peer, f"from-{start}")
                got = peer.dfget(f"{origin.url}/f", output, "--header", f"Range: bytes={start}-{end}")
                self.assertEqual(got.code, 0, got.stderr)
                self.assertEqual(output.read_bytes(), content[start:end + 1], f"{peer.name}: bytes {start} to {end}")
                self.assertLess(got.seconds, 8, "a parent that holds another range was waited for")
        got = one.dfget(f"{origin.url}/f", self.output(one, "tail"), "--header", "Range: bytes=-10")
        self.assertEqual((got.code, self.output(one, "tail").read_bytes()), (0, content[-10:]), got.stderr)
        got = one.dfget(f"{origin.url}/f", self.output(one, "beyond"), "--header", f"Range: bytes={size}-{size + 5}")
        self.assert_refused(got, got.code or 99, "range")

    def test_lengths_at_the_edges(self):
        origin = self.cluster.origin()
        _seed, one, two = self.swarm(2)
        for size in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE):
            name = f"of-{size}"
            origin.file(name, size)
            self.fetch_all([one, two], origin, name)

    def test_query_parameters(self):
        origin = self.cluster.origin()
        source = origin.file("f", 8 * MIB)
        _seed, one, two = self.swarm(2)
        outputs = [
            one.dfget(f"{origin.url}/f?a=1&b=%20x%2Fy", self.output(one, "q one")),
            two.dfget(f"{origin.url}/f?a=1&b=%20x%2Fy", self.output(two, "q one")),
        ]
        self.assert_read_once(origin, "f")
        # A parameter that does not identify the file: held already.
        ignored = f"{origin.url}/f?a=1&b=%20x%2Fy&token=other"
        outputs.append(one.dfget(ignored, self.output(one, "q two"), "--filtered-query-param", "token"))
        self.assert_read_once(origin, "f")
        # Another parameter: another task.
        outputs.append(one.dfget(f"{origin.url}/f?a=2", self.output(one, "q three")))
        self.assert_read_once(origin, "f", times=2.01)
        self.assertGreaterEqual(origin.bytes_sent("f"), 16 * MIB)
        for got in outputs:
            self.assertEqual((got.code, got.stderr and sha256(got.output)), (0, sha256(source)), got.stderr)

    def test_to_standard_output(self):
        origin = self.cluster.origin()
        source = origin.file("f", 21 * MIB)
        _seed, peer = self.swarm(1)
        argv = [str(word) for word in peer.dfget_argv(f"{origin.url}/f", "-")]
        done = subprocess.run(argv, capture_output=True, timeout=QUIET, cwd=peer.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, source.read_bytes())
        self.assertFalse((peer.folder / "-").exists())
        # A reader that has seen enough is not an accident to wait for.
        started = time.monotonic()
        head = subprocess.run(["bash", "-c", '"$@" | head -c 100000', "-", *argv], capture_output=True, timeout=QUIET)
        self.assertEqual(head.stdout, source.read_bytes()[:100000])
        self.assertLess(time.monotonic() - started, 10)
