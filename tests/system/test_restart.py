"""What a daemon makes of its storage after it ended in the middle, and how it ends in order."""

import time
from pathlib import Path

from harness import Daemon, wait_until
from harness.cluster import sha256

from .support import MIB, PIECE, PROMPT, QUIET, SystemTest

SIZE = 64 * MIB


def content_file(daemon: Daemon) -> Path:
    """The content of the only task of a daemon."""
    (path,) = daemon.storage.glob("tasks/*.data")
    return path


def damage(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


class Restart(SystemTest):
    def one(self, extra: str = "limit_rate 6m;", **options) -> Daemon:
        self.origin = self.cluster.origin(extra=extra)
        self.source = self.origin.file("f", SIZE)
        self.url = f"{self.origin.url}/f"
        self.scheduler = self.cluster.scheduler()
        daemon = self.cluster.daemon("peer", schedulers=[self.scheduler], keep=True, **options)
        self.known(self.scheduler, [daemon])
        return daemon

    def again(self, daemon: Daemon, name: str = "again") -> None:
        got = daemon.dfget(self.url, self.output(daemon, name), seconds=QUIET)
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(got.output), sha256(self.source))

    def test_a_killed_daemon_continues_where_it_was(self):
        daemon = self.one()
        dfget = daemon.start_dfget(self.url, self.output(daemon))
        self.cluster.wait_for_bytes([daemon], 4 * PIECE)
        daemon.process.kill()
        self.assertNotEqual(dfget.wait(PROMPT), 0)
        self.assertFalse(self.output(daemon).exists(), "a part was left as the output")
        daemon.start()
        daemon.ready()
        self.again(daemon)
        # What was arriving when it was killed, eight pieces at most, is read again; whole pieces are not.
        self.assert_read_once(self.origin, "f", times=1.01 + 8 * PIECE / SIZE)
        self.assertLessEqual(daemon.received(), SIZE - 4 * PIECE)

    def test_a_corrupt_piece_is_fetched_again_after_a_crash(self):
        daemon = self.one(extra="")
        self.again(daemon, "first")
        daemon.process.kill()
        # The output may be a hard link to the content.
        self.output(daemon, "first").unlink()
        damage(content_file(daemon), 5 * PIECE + 1000)
        daemon.start()
        daemon.ready()
        self.again(daemon)
        self.assert_read_once(self.origin, "f", times=1 + 2 * PIECE / SIZE)

    def test_a_corrupt_piece_of_a_parent_does_not_spread(self):
        self.corrupt_parent(crashed=False)

    def test_a_corrupt_piece_of_a_parent_that_crashed_does_not_spread(self):
        self.corrupt_parent(crashed=True)

    def corrupt_parent(self, crashed: bool) -> None:
        parent = self.one(extra="")
        self.again(parent, "first")
        self.output(parent, "first").unlink()
        if crashed:
            parent.process.kill()
        damage(content_file(parent), 7 * PIECE + 1)
        if crashed:
            parent.start()
        child = self.cluster.daemon("child", schedulers=[self.scheduler])
        self.known(self.scheduler, [parent, child])
        began = time.monotonic()
        self.again(child)
        took = time.monotonic() - began
        print(f"{took:.1f} s ... ", end="", flush=True)
        self.assertLess(took, 8, "the piece that the parent lost was waited for")
        self.assert_read_once(self.origin, "f", times=1.01 + 4 * PIECE / SIZE)
        self.assertGreater(sum(parent.metric("dragonfly_client_upload_traffic").values()), SIZE / 2, "the parent served nothing")

    def test_without_keep_a_start_is_empty(self):
        daemon = self.one(extra="")
        self.again(daemon, "first")
        self.assertEqual(daemon.stop(), 0)
        daemon.keep = False
        daemon.start()
        daemon.ready()
        self.assertEqual(list(daemon.storage.glob("tasks/*")), [])

    def test_sigterm_lets_a_download_finish_that_soon_does(self):
        daemon = self.one()
        dfget = daemon.start_dfget(self.url, self.output(daemon))
        self.cluster.wait_for_bytes([daemon], 8 * PIECE)
        self.leave(daemon)
        self.assertEqual(dfget.wait(PROMPT), 0, dfget.text())
        self.assertEqual(sha256(self.output(daemon)), sha256(self.source))

    def test_sigterm_ends_a_long_download(self):
        daemon = self.one(extra="limit_rate 700k;")
        dfget = daemon.start_dfget(self.url, self.output(daemon), "--piece-length", "4MiB")
        self.cluster.wait_for_bytes([daemon], PIECE, 60)
        self.leave(daemon)
        self.assertNotIn(dfget.wait(PROMPT), (0, None))
        self.assertIn("daemon", dfget.text())
        self.assertFalse(self.output(daemon).exists())

    def leave(self, daemon: Daemon) -> None:
        """Ends a daemon by SIGTERM: within the bound, socket file gone, forgotten by the scheduler."""
        began = time.monotonic()
        daemon.process.signal(15)
        code = daemon.process.wait(40)
        self.assertEqual(code, 0, daemon.process.text()[-2000:])
        print(f"gone after {time.monotonic() - began:.1f} s ... ", end="", flush=True)
        self.assertLess(time.monotonic() - began, 25)
        self.assertFalse(daemon.socket.exists(), "the socket file is left")
        wait_until(lambda: daemon.name not in self.cluster.hosts(self.scheduler), 5, "the scheduler has forgotten the host")
