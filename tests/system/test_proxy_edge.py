"""The edge of the HTTP proxy with real clients and servers: curl, openssl and nginx.

What goes into the swarm is tested elsewhere; here requests are forwarded, tunnelled, intercepted and refused.
"""

import resource
import socket
import subprocess
import threading

from .support import MIB, SystemTest, needs_root, wait_until

from harness import Origin, Process
from harness.cluster import sha256
from harness.process import free_port


def curl(*words, seconds: int = 30) -> subprocess.CompletedProcess:
    argv = ["curl", "-sS", "--max-time", seconds, "--noproxy", "", *words]
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=seconds + 10)


class Socks5(threading.Thread):
    """A SOCKS5 proxy that asks for user and password (RFC 1928 and 1929)."""

    def __init__(self, ip: str):
        super().__init__(daemon=True)
        self.listener = socket.create_server((ip, 0))
        self.port = self.listener.getsockname()[1]
        self.users: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, near.makefile("rb") as lines:
            lines.read(lines.read(2)[1])
            near.sendall(b"\x05\x02")
            user = lines.read(lines.read(2)[1])
            lines.read(lines.read(1)[0])
            self.users.append(user)
            near.sendall(b"\x01\x00")
            kind = lines.read(4)[3]
            host = socket.inet_ntoa(lines.read(4)) if kind == 1 else lines.read(lines.read(1)[0]).decode()
            port = int.from_bytes(lines.read(2), "big")
            with socket.create_connection((host, port)) as far:
                near.sendall(b"\x05\x00\x00\x01" + bytes(6))
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class ProxyEdge(SystemTest):
    def fetch(self, url: str, source, *words) -> None:
        """curl gets the file, whole and right."""
        out = self.cluster.folder / "got"
        out.unlink(missing_ok=True)
        done = curl("-f", "-o", out, *words, url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sha256(out), sha256(source))

    def test_forwarded_and_blindly_tunnelled(self):
        authority = self.cluster.authority()
        origin = self.cluster.origin(authority=authority)
        daemon = self.cluster.daemon("edge").ready()
        source = origin.file("f", 3 * MIB)
        self.fetch(f"{origin.url}/f", source, "-x", daemon.proxy_url)
        # Blind: it is the origin's own certificate that curl sees.
        self.fetch(f"{origin.tls_url}/f", source, "-x", daemon.proxy_url, "--cacert", authority.cert)
        refused = curl("-x", daemon.proxy_url, f"{origin.tls_url}/f")
        self.assertEqual(refused.returncode, 60, refused.stderr)
        counted = daemon.metric("dragonfly_client_proxy_request_total")
        self.assertEqual(sum(value for labels, value in counted.items() if 'method="CONNECT"' in labels), 2, counted)

    def test_intercepted_only_where_it_is_named(self):
        authority = self.cluster.authority()
        named, other = (self.cluster.origin(authority=authority) for _ in range(2))
        daemon = self.cluster.daemon(
            "edge", proxy=f"interceptHosts: ['{named.ip}']\n",
            extra=f"backend:\n  upstreams:\n    - host: {named.ip}\n      caCert: {authority.cert}\n").ready()
        source = named.file("f", MIB)
        ca = daemon.storage / "proxy-ca" / "ca.crt"
        self.assertEqual((ca.parent / "ca.key").stat().st_mode & 0o777, 0o600)
        self.fetch(f"{named.tls_url}/f", source, "-x", daemon.proxy_url, "--cacert", ca)
        seen = curl("-x", daemon.proxy_url, "--cacert", authority.cert, f"{named.tls_url}/f")
        self.assertEqual(seen.returncode, 60, "not the origin's certificate")
        other_source = other.file("f", MIB)
        self.fetch(f"{other.tls_url}/f", other_source, "-x", daemon.proxy_url, "--cacert", authority.cert)

        def handshake(url: str) -> subprocess.CompletedProcess:
            argv = ["openssl", "s_client", "-proxy", daemon.proxy_url.removeprefix("http://"), "-connect", url.removeprefix("https://"),
                    "-CAfile", ca, "-verify_return_error", "-alpn", "h2,http/1.1"]
            return subprocess.run([str(word) for word in argv], input="", capture_output=True, text=True, timeout=30)
        good = handshake(named.tls_url)
        self.assertIn("Verify return code: 0 (ok)", good.stdout, good.stderr)
        self.assertIn("ALPN protocol: http/1.1", good.stdout)
        self.assertNotEqual(handshake(other.tls_url).returncode, 0)
        # The same CA after a restart, so that trust lasts.
        before = ca.read_bytes()
        daemon.stop()
        daemon.keep = True
        daemon.start()
        daemon.ready()
        self.assertEqual(ca.read_bytes(), before)

    def test_trust_is_installed_and_verified(self):
        origin = self.cluster.origin(authority=self.cluster.authority())
        daemon = self.cluster.daemon("edge", proxy=f"interceptHosts: ['{origin.ip}']\n").ready()
        ca, folder = daemon.storage / "proxy-ca" / "ca.crt", self.cluster.folder / "trust"

        def dfctl(*words, **env) -> subprocess.CompletedProcess:
            argv = [daemon.flavour.program("dfctl"), "ca", *words]
            return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **env})
        for expected in ("Trusted from now on", "Trusted already"):
            done = dfctl("install", "--ca-cert", ca, "--to", folder)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(expected, done.stdout)
        installed = folder / "dragonfly-proxy-ca.crt"
        verify = ("verify", origin.tls_url.removeprefix("https://"), "--proxy", daemon.proxy_url, "--ca-cert", ca)
        done = dfctl(*verify, SSL_CERT_FILE=str(installed))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("is intercepted, and this host trusts it", done.stdout)
        done = dfctl(*verify)
        self.assertEqual(done.returncode, 1)
        self.assertIn("dfctl ca install", done.stdout)
        self.assertEqual(dfctl("install", "--remove", "--to", folder).returncode, 0)
        self.assertFalse(installed.exists())

    @needs_root("a mount namespace")
    def test_the_trust_store_of_the_system_takes_the_ca_and_gives_it_back(self):
        authority = self.cluster.authority()
        origin = self.cluster.origin(authority=authority)
        upstream = f"backend:\n  upstreams:\n    - host: {origin.ip}\n      caCert: {authority.cert}\n"
        daemon = self.cluster.daemon("edge", proxy=f"interceptHosts: ['{origin.ip}']\n", extra=upstream).ready()
        source = origin.file("f", MIB)
        # This machine's store, of which only what is written stays here.
        mounts = ""
        for number, folder in enumerate(("/etc/ssl", "/usr/local/share/ca-certificates")):
            upper, work = (self.cluster.folder / f"{name}{number}" for name in ("upper", "work"))
            upper.mkdir()
            work.mkdir()
            mounts += f"mount -t overlay -o lowerdir={folder},upperdir={upper},workdir={work} overlay {folder} || exit 1; "
        ready = self.cluster.folder / "mounted"
        host = Process("store", ["unshare", "-m", "sh", "-c", f"{mounts} touch {ready}; exec sleep 600"], self.cluster.folder / "store.log")
        self.cluster.processes.append(host)
        wait_until(lambda: ready.exists() or not host.running, 20, "the store is mounted")

        def there(*words) -> subprocess.CompletedProcess:
            argv = ["nsenter", "-m", "-t", host.pid, *words]
            return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=120)

        def dfctl(*words) -> subprocess.CompletedProcess:
            return there(daemon.flavour.program("dfctl"), "ca", *words)

        def client() -> subprocess.CompletedProcess:
            return there("curl", "-fsS", "--max-time", "30", "-o", self.cluster.folder / "got", "-x", daemon.proxy_url, f"{origin.tls_url}/f")
        verify = ("verify", origin.tls_url.removeprefix("https://"), "--proxy", daemon.proxy_url,
                  "--ca-cert", daemon.storage / "proxy-ca" / "ca.crt")
        self.assertEqual((client().returncode, dfctl(*verify).returncode), (60, 1))
        for expected in ("Trusted from now on", "Trusted already"):
            done = dfctl("install", "--ca-cert", daemon.storage / "proxy-ca" / "ca.crt")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(expected, done.stdout)
        done = client()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(sha256(self.cluster.folder / "got"), sha256(source))
        done = dfctl(*verify)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        done = dfctl("install", "--remove")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((client().returncode, dfctl(*verify).returncode), (60, 1))

    def test_an_upstream_gets_what_it_needs(self):
        authority = self.cluster.authority()
        cert, key = authority.issue("client", "client.example")
        needs_certificate = f"ssl_verify_client on; ssl_client_certificate {authority.cert}; ssl_verify_depth 2;"
        origin = self.cluster.origin(authority=authority, extra=needs_certificate)
        source = origin.file("f", MIB)
        mirror = ("-H", f"X-Dragonfly-Registry: {origin.tls_url}")
        stranger = self.cluster.daemon("stranger").ready()
        done = curl("-i", *mirror, f"{stranger.proxy_url}/f")
        self.assertIn("502 Bad Gateway", done.stdout)
        self.assertIn("add its CA to the trusted ones", done.stdout)
        upstream = f"backend:\n  upstreams:\n    - host: '{origin.ip}'\n      caCert: {authority.cert}\n"
        known = self.cluster.daemon("known", extra=upstream).ready()
        self.assertIn("400", curl("-o", "/dev/null", "-w", "%{http_code}", *mirror, f"{known.proxy_url}/f").stdout)
        friend = self.cluster.daemon("friend", extra=f"{upstream}      cert: {cert}\n      key: {key}\n").ready()
        self.fetch(f"{friend.proxy_url}/f", source, *mirror)
        # The same table holds for what is read into the swarm.
        out = self.output(friend)
        got = friend.dfget(f"{origin.tls_url}/f", out)
        self.assertEqual(got.code, 0, got.stderr)
        self.assertEqual(sha256(out), sha256(source))

    def test_http2_towards_an_origin(self):
        """What is passed on takes HTTP/2 where the origin has it; what is read into the swarm takes a connection for each range."""
        authority, ip = self.cluster.authority(), self.cluster.ip()
        port = free_port(ip)
        extra = f"listen {ip}:{port} ssl http2; location /f {{ add_header X-Spoken $server_protocol; }}"
        origin = Origin(self.cluster.folder / "http2", ip, authority=authority, extra=extra)
        self.cluster.processes.append(origin.process)
        source = origin.file("f", 3 * MIB)
        trusted = f"backend:\n  upstreams:\n    - host: '{ip}'\n      caCert: {authority.cert}\n"
        daemon = self.cluster.daemon("known", extra=trusted).ready()
        mirror = ("-H", f"X-Dragonfly-Registry: https://{ip}:{port}")
        told = curl("-D", "-", "-o", "/dev/null", *mirror, f"{daemon.proxy_url}/f").stdout
        self.assertIn("x-spoken: http/2.0", told.lower())
        for _ in range(3):
            self.fetch(f"{daemon.proxy_url}/f", source, *mirror)
        out = self.output(daemon)
        got = daemon.dfget(f"https://{ip}:{port}/f", out)
        self.assertEqual((got.code, sha256(out)), (0, sha256(source)), got.stderr)

    def test_a_path_reaches_its_origin_as_it_was_written(self):
        """Also where each such request has a connection of its own: it needs all that the shared ones need."""
        authority = self.cluster.authority()
        cert, key = authority.issue("client", "client.example")
        needs_certificate = f"ssl_verify_client on; ssl_client_certificate {authority.cert}; ssl_verify_depth 2;"
        origin = self.cluster.origin(
            authority=authority, extra=f"{needs_certificate} location /uri {{ return 200 \"$request_uri $http_authorization\"; }}")
        outer = self.cluster.daemon("outer", proxy_server="basicAuth: {username: me, password: 'p@ss'}\n").ready()
        socks = Socks5(self.cluster.ip())
        self.addCleanup(socks.close)
        by_http = outer.proxy_url.replace("http://", "http://me:p%40ss@")
        by_socks = f"socks5://me:secret@{socks.listener.getsockname()[0]}:{socks.port}"
        for name, way in (("straight", ""), ("by-http", f"proxy: '{by_http}', "), ("by-socks", f"proxy: '{by_socks}', ")):
            for trust in (f"caCert: {authority.cert}", "skipVerify: true"):
                upstream = f"{{host: '{origin.ip}', {way}{trust}, cert: {cert}, key: {key}, username: robot, password: r}}"
                daemon = self.cluster.daemon(name, extra=f"backend:\n  upstreams:\n    - {upstream}\n").ready()
                for path in ("/uri/./x?y='z'", "/uri/a/../b", "/uri/plain"):
                    want = f"{path} Basic cm9ib3Q6cg=="
                    done = curl("--path-as-is", "-x", daemon.proxy_url, f"{origin.url}{path}")
                    self.assertEqual(done.stdout, want, f"{name}, {trust}: {done.stderr}")
                    done = curl("--path-as-is", "-H", f"X-Dragonfly-Registry: {origin.tls_url}", f"{daemon.proxy_url}{path}")
                    self.assertEqual(done.stdout, want, f"{name}, {trust}: {done.stderr}")
                self.cluster.remove(daemon)
        stranger = self.cluster.daemon("stranger").ready()
        done = curl("-i", "--path-as-is", "-H", f"X-Dragonfly-Registry: {origin.tls_url}", f"{stranger.proxy_url}/uri/./x")
        self.assertIn("502 Bad Gateway", done.stdout)
        self.assertIn("add its CA to the trusted ones", done.stdout)

    def test_through_proxies_of_upstreams(self):
        authority = self.cluster.authority()
        origin = self.cluster.origin(authority=authority)
        source = origin.file("f", MIB)
        outer = self.cluster.daemon("outer", proxy_server="basicAuth: {username: me, password: 'p@ss'}\n").ready()
        socks = Socks5(self.cluster.ip())
        self.addCleanup(socks.close)
        by_http = outer.proxy_url.replace("http://", "http://me:p%40ss@")
        for name, proxy in (("by-http", by_http), ("by-socks", f"socks5://me:secret@{socks.listener.getsockname()[0]}:{socks.port}")):
            inner = self.cluster.daemon(
                name, extra=f"backend:\n  upstreams:\n    - host: '{origin.ip}'\n      proxy: '{proxy}'\n      caCert: {authority.cert}\n").ready()
            self.fetch(f"{origin.url}/f", source, "-x", inner.proxy_url)
            self.fetch(f"{inner.proxy_url}/f", source, "-H", f"X-Dragonfly-Registry: {origin.tls_url}")
            self.fetch(f"{origin.tls_url}/f", source, "-x", inner.proxy_url, "--cacert", authority.cert)
            self.assertNotIn("p%40ss", inner.process.text())
        self.assertGreaterEqual(len(socks.users), 3)
        self.assertEqual(set(socks.users), {b"me"})
        asked = outer.metric("dragonfly_client_proxy_request_total")
        self.assertGreaterEqual(sum(asked.values()), 3, asked)

    def test_redirects_and_addresses_that_are_forbidden(self):
        port = free_port("127.0.0.1")
        extra = f"location /meta {{ return 302 http://169.254.169.254/latest; }} location /local {{ return 302 http://127.0.0.1:{port}/; }}"
        origin = self.cluster.origin(extra=extra)
        daemon = self.cluster.daemon("edge", extra="backend:\n  egress:\n    deny: ['127.0.0.1', blocked.example]\n").ready()
        # The client follows, and is refused there; a read into the swarm is refused at the redirect.
        for path in ("meta", "local"):
            done = curl("-L", "-o", "/dev/null", "-w", "%{http_code}", "-x", daemon.proxy_url, f"{origin.url}/{path}")
            self.assertEqual(done.stdout, "403", path)
            got = daemon.dfget(f"{origin.url}/{path}", self.output(daemon))
            self.assertNotEqual(got.code, 0)
            self.assertIn("forbidden by the egress policy", got.stderr)
        done = curl("-x", daemon.proxy_url, "http://a.blocked.example/")
        self.assertIn("forbidden by the egress policy", done.stdout)

    def test_ten_thousand_idle_connections(self):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit[1] < 12_000:
            self.fail(f"this test needs 12000 open files, the limit is {limit[1]}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        origin = self.cluster.origin()
        source = origin.file("f", MIB)
        daemon = self.cluster.daemon("edge").ready()
        address = (daemon.ip, 4001)
        self.fetch(f"{origin.url}/f", source, "-x", daemon.proxy_url)
        request = f"GET {origin.url}/missing HTTP/1.1\r\nHost: x\r\n\r\n".encode()

        def round_trip() -> float:
            """Ten thousand connections, every tenth of which asks once; the resident memory with all of them open."""
            idle = []
            try:
                for number in range(10_000):
                    connection = socket.create_connection(address, timeout=60)
                    idle.append(connection)
                    if number % 10 == 0:
                        connection.sendall(request)
                        self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 404"))
                self.fetch(f"{origin.url}/f", source, "-x", daemon.proxy_url)
                held = daemon.process.rss_mib()
                # All of them are still there.
                idle[1].sendall(request)
                self.assertTrue(idle[1].recv(65536).startswith(b"HTTP/1.1 404"))
                return held
            finally:
                for connection in idle:
                    connection.close()
        before = daemon.process.rss_mib()
        first = round_trip()
        second = round_trip()
        print(f"resident MiB: {before:.0f} before, {first:.0f} with 10,000 connections, {second:.0f} with 10,000 others")
        self.assertLess(first - before, 60)
        self.assertLess(second - first, 10, "it grows")
        wait_until(lambda: daemon.process.running, 5, "it still runs")
