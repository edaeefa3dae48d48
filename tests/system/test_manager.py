"""A swarm that learns of its schedulers from a manager, and the manager's absence."""

from harness.cluster import sha256

from .support import MIB, QUIET, SystemTest


class WithManager(SystemTest):
    def test_the_manager_is_needed_only_once(self):
        origin = self.cluster.origin()
        for name in ("first", "second", "third"):
            origin.file(name, 32 * MIB)
        manager = self.cluster.manager()
        scheduler = self.cluster.scheduler(manager=manager)
        seed, *peers = [self.cluster.daemon(name, manager=manager, seed=name == "seed", keep=True)
                        for name in ("seed", "peer1", "peer2", "peer3")]
        self.known(scheduler, [seed, *peers], seconds=60)
        self.fetch_all(peers, origin, "first")
        self.assert_read_once(origin, "first")

        self.cluster.process("manager").kill()
        self.fetch_all(peers, origin, "second")
        self.assert_read_once(origin, "second")

        # A daemon that starts without the manager keeps the schedulers of its last configuration.
        self.assertEqual(peers[0].stop(), 0, peers[0].process.text()[-2000:])
        self.assertNotIn("peer1", self.cluster.hosts(scheduler))
        peers[0].start()
        self.known(scheduler, peers[:1])
        self.fetch_all(peers, origin, "third")
        self.assert_read_once(origin, "third")

    def test_without_any_scheduler_the_origin_is_read(self):
        origin = self.cluster.origin()
        source = origin.file("f", 24 * MIB)
        manager = self.cluster.manager()
        daemon = self.cluster.daemon("peer", manager=manager).ready(60)
        got = daemon.dfget(f"{origin.url}/f", self.output(daemon), seconds=QUIET)
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(got.output), sha256(source))
