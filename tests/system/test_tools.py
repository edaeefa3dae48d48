"""dfget with directories and many files, and dfctl, against real daemons."""

import json
import subprocess

from harness import Flavour, wait_until
from harness.cluster import sha256

from .support import MIB, QUIET, SystemTest

# Files of a directory that is large for its number of files.
MANY = 1000


class Tools(SystemTest):
    def dfctl(self, daemon, *args: str) -> tuple[int, dict]:
        """Runs dfctl against a daemon; its exit code and its JSON."""
        argv = [Flavour.OURS.program("dfctl"), "--output", "json", *args, "--endpoint", daemon.socket]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60)
        return done.returncode, json.loads(done.stdout)

    def alone(self):
        """A daemon without a scheduler, and an origin."""
        return self.cluster.daemon("alone").ready(), self.cluster.origin()

    def test_a_directory_of_a_web_server_comes_whole(self):
        daemon, origin = self.alone()
        tree = origin.www / "tree"
        for folder in ("sub/deep", "empty", "odd näme %"):
            (tree / folder).mkdir(parents=True)
        for name in ("a.json", "sub/b.bin", "sub/deep/c.json", "odd näme %/d e.txt"):
            (tree / name).write_bytes(name.encode() * 1000)
        output = self.output(daemon, "tree")
        got = daemon.dfget(f"{origin.url}/tree", output, "--recursive")
        self.assertEqual(got.code, 0, got.stderr)
        paths = lambda root: sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        self.assertEqual(paths(output), paths(tree))
        for path in tree.rglob("*"):
            if path.is_file():
                self.assertEqual(sha256(path), sha256(output / path.relative_to(tree)), path)

        chosen = self.output(daemon, "chosen")
        got = daemon.dfget(f"{origin.url}/tree/", chosen, "-I", "**/*.json", "-X", "sub/deep")
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(paths(chosen), ["a.json"])

    def test_a_directory_that_is_too_deep_is_no_success(self):
        daemon, origin = self.alone()
        origin.file("f", 10)
        (origin.www / "round").symlink_to(".")
        output = self.output(daemon, "round")
        got = daemon.dfget(f"{origin.url}/", output)
        self.assertEqual(got.code, 4, got.stderr)
        self.assertIn("levels of folders", got.stderr)
        self.assertFalse(output.exists())
        deep = origin.www / "/".join(["deep"] * 30)
        deep.mkdir(parents=True)
        (deep / "f").write_bytes(b"x")
        output = self.output(daemon, "deep")
        got = daemon.dfget(f"{origin.url}/deep/", output)
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual((output / "/".join(["deep"] * 29) / "f").read_bytes(), b"x")

    def test_a_named_folder_an_empty_one_and_a_page_that_is_none(self):
        daemon, origin = self.alone()
        (origin.www / "d/sub").mkdir(parents=True)
        (origin.www / "d/empty").mkdir()
        (origin.www / "d/sub/f").write_bytes(b"x")
        (origin.www / "page").mkdir()
        (origin.www / "page/index.html").write_text("<title>Welcome</title><a href=/>home</a>")
        output = self.output(daemon, "named")
        got = daemon.dfget(f"{origin.url}/d/", output, "-I", "sub", "-I", "empty")
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual((output / "sub/f").read_bytes(), b"x")
        self.assertTrue((output / "empty").is_dir())
        got = daemon.dfget(f"{origin.url}/d/empty/", self.output(daemon, "empty"))
        self.assertEqual(got.code, 0, got.stderr)
        self.assertIn("/d/empty/ is empty", got.stderr)
        got = daemon.dfget(f"{origin.url}/page/", self.output(daemon, "page"))
        self.assertEqual(got.code, 4, got.stderr)
        self.assertIn("does not look like a listing", got.stderr)
        got = daemon.dfget(f"{origin.url}/d/", self.output(daemon, "none"), "-I", "*.jsn")
        self.assertEqual(got.code, 1, got.stderr)

    def test_a_digest_is_that_of_the_range(self):
        daemon, origin = self.alone()
        source = origin.file("file", 5 * MIB)
        part = self.output(daemon, "part")
        part.write_bytes(source.read_bytes()[10:21])
        for name, digest, code in (("right", sha256(part), 0), ("wrong", sha256(source), 6)):
            output = self.output(daemon, name)
            got = daemon.dfget(f"{origin.url}/file", output, "-H", "Range: bytes=10-20", "--json",
                               "--digest", f"sha256:{digest}")
            self.assertEqual(got.code, code, got.stderr)
            self.assertEqual(output.exists(), code == 0)
        got = daemon.dfget(f"{origin.url}/file", self.output(daemon, "tail"), "-H", "Range: bytes=-99999999")
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(self.output(daemon, "tail")), sha256(source))

    def test_an_output_that_appears_meanwhile_stays(self):
        daemon = self.cluster.daemon("alone").ready()
        origin = self.cluster.origin(extra="limit_rate 1m;")
        origin.file("file", 12 * MIB)
        output = self.output(daemon)
        download = daemon.start_dfget(f"{origin.url}/file", output)
        wait_until(lambda: daemon.received() > 0, QUIET, "the download is under way")
        output.write_text("mine")
        self.assertEqual(download.wait(QUIET), 5, download.text())
        self.assertEqual(output.read_text(), "mine")

    def test_of_an_origin_without_lengths_the_bytes_are_the_origins(self):
        daemon = self.cluster.daemon("alone").ready()
        origin = self.cluster.origin(extra="ssi on; ssi_types *;")
        origin.file("file", 15)
        got = daemon.dfget(f"{origin.url}/file", self.output(daemon), "--json")
        self.assertEqual(got.code, 0, got.stderr)
        told = json.loads(got.stderr.splitlines()[-1])
        self.assertEqual((told["bytes_from"]["origin"], told["bytes_from"]["local"]), (15, 0), told)

    def test_a_thousand_files_cold_and_warm(self):
        daemon, origin = self.alone()
        folder = origin.www / "many"
        folder.mkdir()
        for number in range(MANY):
            (folder / f"{number:04}").write_bytes(number.to_bytes(4, "big") * 5000)
        for name in ("cold", "warm"):
            output = self.output(daemon, name)
            got = daemon.dfget(f"{origin.url}/many/", output, "--max-files", str(MANY), "--json")
            self.assertEqual(got.code, 0, got.stderr)
            told = json.loads(got.stderr.splitlines()[-1])
            self.assertEqual((told["succeeded"], told["failed"]), (MANY, 0))
            self.assertEqual(told["bytes"], 20_000 * MANY)
            source = "origin" if name == "cold" else "local"
            self.assertEqual(told["bytes_from"][source], 20_000 * MANY, told["bytes_from"])
            for number in (0, 500, 999):
                self.assertEqual((output / f"{number:04}").read_bytes(), number.to_bytes(4, "big") * 5000)

    def test_one_missing_file_of_a_directory(self):
        daemon, origin = self.alone()
        origin.file("there", 1000)
        output = self.output(daemon, "some")
        got = daemon.dfget(f"{origin.url}/", output, "-I", "there", "-I", "missing")
        self.assertEqual(got.code, 1, got.stderr)
        self.assertIn("missing: ", got.stderr)
        self.assertIn("1 failed", got.stderr)
        self.assertEqual([path.name for path in output.iterdir()], ["there"])

    def test_who_gave_which_bytes_and_why_the_origin_was_read(self):
        seed, peer = self.swarm(1)
        origin = self.cluster.origin()
        source = origin.file("file", 9 * MIB)
        got = peer.dfget(f"{origin.url}/file", self.output(peer), "--json")
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(self.output(peer)), sha256(source))
        task = json.loads(got.stderr.splitlines()[-1])["task_id"]

        code, told = self.dfctl(peer, "task", "show", task)
        self.assertEqual(code, 0, told)
        self.assertEqual((told["held_pieces"], told["held_bytes"]), (3, 9 * MIB))
        self.assertEqual(sum(told["bytes_from"].values()), 9 * MIB, told)
        self.assertEqual(sum(giver["bytes"] for giver in told["givers"]), 9 * MIB)
        if told["bytes_from"]["origin"] == 0:
            self.assertIsNone(told["origin_use"])
        self.assertTrue(any("seed" in (giver["host"] or "") for giver in told["givers"]), told)

        code, told = self.dfctl(seed, "task", "show", task)
        self.assertEqual((code, told["bytes_from"]["origin"]), (0, 9 * MIB), told)
        self.assertTrue(told["origin_use"]["reason"], told)

    def test_tasks_are_listed_shown_and_removed_and_the_reason_outlives_a_restart(self):
        daemon = self.cluster.daemon("alone", keep=True).ready()
        origin = self.cluster.origin()
        origin.file("file", 5 * MIB)
        got = daemon.dfget(f"{origin.url}/file?token=secret", self.output(daemon), "--json")
        self.assertEqual(got.code, 0, got.stderr)
        daemon.stop()
        daemon.start()
        daemon.ready()
        code, told = self.dfctl(daemon, "task", "ls")
        self.assertEqual((code, len(told["tasks"])), (0, 1), told)
        task = told["tasks"][0]["id"]
        self.assertEqual(told["tasks"][0]["content_length"], 5 * MIB)
        code, told = self.dfctl(daemon, "task", "show", task)
        self.assertEqual(told["origin_use"]["reason"], "no scheduler is available", told)
        self.assertNotIn("secret", told["url"])
        code, told = self.dfctl(daemon, "task", "show", "0" * 64)
        self.assertEqual((code, told["ok"]), (1, False))
        self.assertIn("is not on this host", told["error"])
        code, told = self.dfctl(daemon, "persistent-task", "ls")
        self.assertEqual((code, told["ok"]), (1, False))
        self.assertIn("not implemented", told["error"])

    def test_doctor_finds_what_is_well_and_what_is_not(self):
        _seed, peer = self.swarm(1)
        code, told = self.dfctl(peer, "doctor")
        state = {(check["check"], check["subject"].split()[0]): check["state"] for check in told["checks"]}
        self.assertEqual((code, told["failures"]), (0, 0), told)
        self.assertEqual(state["port", "upload"], "ok", told)
        self.assertEqual(state["port", "health"], "ok", told)
        self.assertTrue(any(check["check"] == "clock" and check["state"] == "ok" for check in told["checks"]), told)

        scheduler = next(process for process in self.cluster.processes if process.name == "scheduler")
        scheduler.kill()
        code, told = self.dfctl(peer, "doctor")
        bad = [check for check in told["checks"] if check["state"] == "failure"]
        self.assertEqual((code, [check["check"] for check in bad]), (1, ["scheduler"]), told)
        self.assertTrue(bad[0]["fix"])

        peer.stop()
        code, told = self.dfctl(peer, "doctor")
        self.assertEqual((code, told["checks"][0]["check"], told["checks"][0]["state"]), (1, "socket", "failure"), told)
