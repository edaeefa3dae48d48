"""Preheat: files and images are there before anybody asks, under the identity of a later pull."""

import hashlib
import json
import struct
import subprocess
import time

from harness import Daemon, Flavour, wait_until
from harness.certificates import Authority
from harness.cluster import sha256
from harness.images import Image, Images
from harness.registry import ALICE, Registry

from .support import MIB, QUIET, SystemTest


def fields(message: bytes) -> dict:
    """The fields of a protobuf message by number, of each the last."""
    found, at = {}, 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found[key >> 3] = varint()
        elif key & 7 == 2:
            length = varint()
            found[key >> 3] = message[at:at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[key & 7]
    return found


class Preheat(SystemTest):
    def setUp(self) -> None:
        super().setUp()
        self.scheduler = self.cluster.scheduler()
        self.registries: list[Registry] = []

    def _end(self) -> None:
        for registry in self.registries:
            registry.close()
        super()._end()

    def hosts(self, *names: str, **options) -> list[Daemon]:
        """Daemons that the scheduler knows; a name that begins with seed makes a seed."""
        daemons = [self.cluster.daemon(name, seed=name.startswith("seed"), schedulers=[self.scheduler], **options) for name in names]
        self.known(self.scheduler, daemons)
        return daemons

    def registry(self, **options) -> Registry:
        registry = Registry(self.cluster.folder / f"registry{len(self.registries)}", self.cluster.ip(), **options)
        self.registries.append(registry)
        return registry

    def images(self) -> Images:
        return Images(self.cluster.folder / "images")

    def dfctl(self, command: str, *words: object, code: int = 0, seconds: float = QUIET) -> dict:
        """Runs `dfctl task COMMAND`; its JSON."""
        argv = [Flavour.OURS.program("dfctl"), "task", command, *words, "--scheduler-endpoint", f"http://{self.scheduler}", "--output", "json"]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=seconds)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return json.loads(done.stdout)

    def seeds_available(self) -> None:
        """The scheduler has looked at its seeds: a preheat of one file by one of them is taken."""
        origin = self.cluster.origin()
        origin.file("probe", 1000)

        def taken() -> bool:
            argv = [Flavour.OURS.program("dfctl"), "task", "preheat", f"{origin.url}/probe", "--scope", "single_seed_peer",
                    "--scheduler-endpoint", f"http://{self.scheduler}"]
            return subprocess.run([str(word) for word in argv], capture_output=True, timeout=QUIET).returncode == 0

        wait_until(taken, 30, "a seed is available")

    def one_image(self) -> tuple[Images, Image]:
        images = self.images()
        layers = [images.layer({"a": 9 * MIB}, "stored"), images.layer({"b": 700_000}, "zstd"), images.layer({"c": b"small"})]
        return images, images.image(layers)

    def blobs_read_once(self, registry: Registry, image: Image) -> None:
        sent = registry.blob_bytes()
        for blob in image.all_blobs():
            # Each host asks once for the first byte, to learn the length.
            self.assertLessEqual(sent.get(blob.digest, 0), blob.size * 1.01 + 16, f"{blob.digest} left the registry more than once")
            self.assertGreaterEqual(sent.get(blob.digest, 0), blob.size, f"{blob.digest} did not leave the registry")

    def test_a_file_by_every_scope(self):
        origin = self.cluster.origin()
        one, two, peer1, peer2 = self.hosts("seed1", "seed2", "peer1", "peer2")
        self.seeds_available()
        everybody = {"seed1", "seed2", "peer1", "peer2"}
        for scope, words, expected in (
            ("single_seed_peer", [], 1),
            ("all_seed_peers", [], {"seed1", "seed2"}),
            ("all_peers", [], {"peer1", "peer2"}),
            ("all_peers", ["--count", "1"], {"peer1"}),
            ("all_peers", ["--percentage", "50"], {"peer1"}),
            ("all_peers", ["--ip", peer2.ip], {"peer2"}),
        ):
            name = f"f-{scope}-{'-'.join(words).replace('-', '')}".replace(".", "_")
            source = origin.file(name, 9 * MIB + 17)
            url = f"{origin.url}/{name}"
            told = self.dfctl("preheat", url, "--scope", scope, *words)
            fetched = {host["hostname"] for host in told["hosts"] if host["fetched"] == 1}
            self.assertEqual(told["failed"], 0, told)
            if expected == 1:
                self.assertEqual(len(fetched), 1, told)
            else:
                self.assertEqual(fetched, expected, told)
            self.assert_read_once(origin, name)
            stat = self.dfctl("stat", url)
            holders = {peer["hostname"] for peer in stat["peers"] if peer["contents"] == [{"url": url, "finished": True}]}
            self.assertLessEqual(fetched, holders, stat)
            self.assertLessEqual(holders, everybody)
            # The second time nothing is fetched.
            again = self.dfctl("preheat", url, "--scope", scope, *words)
            self.assertEqual([host["held"] for host in again["hosts"]], [1] * len(fetched), again)
            # And dfget has it without the origin.
            got = peer2.dfget(url, self.output(peer2, name))
            self.assertEqual((got.code, sha256(got.output)), (0, sha256(source)), got.stderr)
            self.assert_read_once(origin, name)

    def test_a_directory_and_a_tag(self):
        origin = self.cluster.origin()
        (peer,) = self.hosts("peer1")
        for name in ("a", "b"):
            (origin.www / "dir").mkdir(exist_ok=True)
            origin.file(f"dir/{name}", 5 * MIB)
        told = self.dfctl("preheat", f"{origin.url}/dir/", "--scope", "all_peers", "--tag", "t", "--application", "app")
        self.assertEqual((told["failed"], told["hosts"][0]["fetched"]), (0, 2), told)
        got = peer.dfget(f"{origin.url}/dir/a", self.output(peer), "--tag", "t", "--application", "app")
        self.assertEqual(got.code, 0, got.stderr)
        self.assert_read_once(origin, "dir/a")
        stat = self.dfctl("stat", f"{origin.url}/dir/", "--tag", "t", "--application", "app")
        self.assertEqual(len(stat["peers"][0]["contents"]), 2, stat)
        self.assertEqual(self.dfctl("stat", f"{origin.url}/dir/a")["peers"], [], "the tag belongs to the identity")

    def test_an_image_and_then_no_registry(self):
        registry = self.registry()
        images, image = self.one_image()
        reference = "oci://" + images.push(image, registry, "team/app")
        hosts = self.hosts("seed1", "peer1", "peer2")
        self.seeds_available()
        words = [reference, "--plain-http"]
        for scope in ("all_seed_peers", "all_peers"):
            told = self.dfctl("preheat", *words, "--scope", scope)
            self.assertEqual(told["failed"], 0, told)
        kinds = sorted(content["kind"] for content in told["contents"])
        self.assertEqual(kinds, ["config", "layer", "layer", "layer", "manifest", "tag"], told)
        for content in told["contents"]:
            if content["kind"] != "tag":
                self.assertEqual(content["task_id"], content["url"].rsplit(":", 1)[1])
        self.blobs_read_once(registry, image)
        stat = self.dfctl("stat", *words)
        self.assertEqual(len(stat["layers"]), 4, stat)
        for peer in stat["peers"]:
            self.assertEqual([held["finished"] for held in peer["contents"]], [True] * 4, stat)
        self.assertEqual({peer["hostname"] for peer in stat["peers"]}, {"seed1", "peer1", "peer2"})
        seeds = self.dfctl("stat", *words, "--scope", "all_seed_peers")
        self.assertEqual([peer["hostname"] for peer in seeds["peers"]], ["seed1"])
        # The blobs are there under the identity of a pull: the registry is not needed any more.
        registry.stop()
        for host in hosts:
            for blob in image.all_blobs():
                url = f"{registry.url}/v2/team/app/blobs/{blob.digest}"
                content = self.fetch_by_digest(host, url)
                self.assertEqual("sha256:" + hashlib.sha256(content).hexdigest(), blob.digest, f"{url} from {host.name}")

    def fetch_by_digest(self, host: Daemon, url: str) -> bytes:
        """Fetches a blob through a daemon as the proxy does: DownloadTask with the digest as identity, and the bytes of the pieces."""
        name, text = url.encode(), len(url)
        # Download: url, need_piece_content, enable_task_id_based_blob_digest (fields 1, 20, 30). The request holds it in field 1.
        download = b"\x0a" + bytes([text & 0x7F | 0x80, text >> 7]) + name + b"\xa0\x01\x01" + b"\xf0\x01\x01"
        length = len(download)
        request = b"\x0a" + bytes([length & 0x7F | 0x80, length >> 7]) + download
        command = ["curl", "--silent", "--fail", "--max-time", "30", "--http2-prior-knowledge", "--header", "content-type: application/grpc",
                   "--header", "te: trailers", "--data-binary", "@-",
                   f"http://{host.ip}:4000/dfdaemon.v2.DfdaemonUpload/DownloadTask"]
        answer = subprocess.run(command, input=struct.pack(">BI", 0, len(request)) + request, capture_output=True, check=True).stdout
        pieces, at = {}, 0
        while at < len(answer):
            _compressed, length = struct.unpack_from(">BI", answer, at)
            message = fields(answer[at + 5:at + 5 + length])
            at += 5 + length
            # DownloadTaskResponse.download_piece_finished_response.piece: number, content.
            if 5 in message:
                piece = fields(fields(message[5])[1])
                pieces[piece.get(1, 0)] = piece.get(6, b"")
        return b"".join(pieces[number] for number in sorted(pieces))

    def test_private_registries(self):
        images, image = self.one_image()
        self.hosts("seed1")
        self.seeds_available()
        for auth in ("basic", "token"):
            registry = self.registry(auth=auth)
            reference = "oci://" + images.push(image, registry, "team/app")
            words = [reference, "--plain-http", "--username", ALICE.name]
            refused = self.dfctl("preheat", *words, "--password", "wrong", code=1)
            self.assertIn("refuses access", refused["error"])
            self.assertNotIn("wrong", refused["error"])
            nobody = self.dfctl("preheat", reference, "--plain-http", code=1)
            self.assertIn("user name and password", nobody["error"])
            told = self.dfctl("preheat", *words, "--password", ALICE.password)
            self.assertEqual(told["failed"], 0, told)
            log = self.cluster.process("scheduler").text()
            self.assertNotIn(ALICE.password, log)
            self.dfctl("stat", *words, "--password", ALICE.password)

    def test_a_registry_with_a_certificate_of_its_own(self):
        authority = Authority(self.cluster.folder / "ca")
        registry = self.registry(authority=authority)
        images, image = self.one_image()
        reference = "oci://" + images.push(image, registry, "team/app")
        self.hosts("peer1")
        refused = self.dfctl("preheat", reference, "--scope", "all_peers", code=1)
        self.assertIn("TLS", refused["error"])
        told = self.dfctl("preheat", reference, "--scope", "all_peers", "--ca-cert", authority.cert)
        self.assertEqual((told["failed"], told["hosts"][0]["fetched"]), (0, 6), told)
        # The scheduler looks away, the daemon does not.
        stat = self.dfctl("stat", reference, "--insecure-skip-verify")
        self.assertEqual(len(stat["peers"][0]["contents"]), 4, stat)

    def test_platforms_of_an_index(self):
        registry = self.registry()
        images = self.images()
        shared = images.layer({"shared": 100_000})
        amd = images.image([shared, images.layer({"amd": 200_000})], ("linux", "amd64"))
        arm = images.image([shared, images.layer({"arm": 200_000})], ("linux", "arm64"))
        reference = "oci://" + images.push(images.index([amd, arm]), registry, "team/app")
        self.hosts("peer1")
        words = [reference, "--plain-http", "--scope", "all_peers"]
        one = self.dfctl("preheat", *words, "--platform", "linux/arm64")
        # The index by tag and digest, its manifest, config and two layers.
        self.assertEqual((len(one["contents"]), one["failed"]), (6, 0), one)
        self.assertIn(arm.blobs[0].digest, {content["url"].rsplit("/", 1)[1] for content in one["contents"]})
        both = self.dfctl("preheat", *words, "--platform", "all")
        self.assertEqual((len(both["contents"]), both["hosts"][0]["held"], both["hosts"][0]["fetched"]), (9, 6, 3), both)
        none = self.dfctl("preheat", *words, "--platform", "windows/amd64", code=1)
        self.assertIn("linux/amd64, linux/arm64", none["error"])

    def test_what_fails_is_told_by_host(self):
        origin = self.cluster.origin()
        origin.file("f", MIB)
        up, down = self.hosts("peer1", "peer2")
        down.process.kill()
        told = self.dfctl("preheat", f"{origin.url}/f", "--scope", "all_peers", code=1)
        by_name = {host["hostname"]: host for host in told["hosts"]}
        self.assertEqual((by_name["peer1"]["fetched"], by_name["peer1"]["failures"]), (1, []))
        self.assertIn("cannot be reached", by_name["peer2"]["failures"][0]["error"])
        elsewhere = self.dfctl("preheat", f"{origin.url}/f", "--scope", "all_peers", "--ip", up.ip, "--ip", "10.255.255.1", code=1)
        self.assertEqual(elsewhere["failed"], 1, elsewhere)
        gone = self.dfctl("preheat", f"{origin.url}/absent", "--scope", "all_peers", "--ip", up.ip, code=1)
        self.assertIn("404", gone["hosts"][0]["failures"][0]["error"])
        for words, code, text in (
            (["--scope", "all_seed_peers"], 1, "no seed peer is available"),
            (["--scope", "all_peers", "--ip", "10.255.255.1"], 1, "none of the addresses"),
            (["--scope", "all_peers", "--request-sdk"], 2, "--request-sdk"),
        ):
            self.assertIn(text, self.dfctl("preheat", f"{origin.url}/f", *words, code=code)["error"])

    def test_the_time_is_over(self):
        origin = self.cluster.origin(extra="limit_rate 100k;")
        origin.file("slow", 20 * MIB)
        self.hosts("peer1")
        began = time.monotonic()
        told = self.dfctl("preheat", f"{origin.url}/slow", "--scope", "all_peers", "--timeout", "2s", code=1)
        self.assertLess(time.monotonic() - began, 20)
        self.assertIn("not done within", told["hosts"][0]["failures"][0]["error"])

    def test_whoever_goes_away_ends_the_preheat(self):
        origin = self.cluster.origin(extra="limit_rate 100k;")
        origin.file("slow", 20 * MIB)
        self.hosts("peer1")
        argv = [Flavour.OURS.program("dfctl"), "task", "preheat", f"{origin.url}/slow", "--scope", "all_peers",
                "--scheduler-endpoint", f"http://{self.scheduler}"]
        watching = subprocess.Popen([str(word) for word in argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            scheduler = self.cluster.process("scheduler")
            wait_until(lambda: "preheat begins" in scheduler.text(), 20, "the preheat runs")
            watching.terminate()
            self.assertEqual(watching.wait(10), 143)
            wait_until(lambda: "its caller went away" in scheduler.text(), 20, "the preheat is given up")
        finally:
            watching.kill()
            watching.wait()
