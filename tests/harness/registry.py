"""A real docker-registry: open, or behind a password, or behind a token server; plain or with TLS; its bytes are counted."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

from .certificates import Authority
from .process import Process, free_port, wait_until

# The combined log format: the request line, the status, the bytes of the body.
_ACCESS = re.compile(r'"(GET|HEAD) (/v2/\S*) HTTP/[\d.]+" (\d+) (\d+)')
_BLOB = re.compile(r"^/v2/(.+)/blobs/(sha256:[0-9a-f]{64})(?:\?.*)?$")

_CONFIG = """version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {folder}/data
  delete:
    enabled: true
http:
  addr: {ip}:{port}
  secret: not-a-secret
{tls}{auth}"""


@dataclasses.dataclass(frozen=True)
class User:
    """Who may read (and write) a private registry."""

    name: str
    password: str

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.name}:{self.password}".encode()).decode()


ALICE = User("alice", "wonderland")


class Registry:
    """One docker-registry in a folder of its own.

    `auth` is None, "basic" or "token" (with a token server of its own); whoever it asks for credentials is `ALICE`. With an
    `authority` it speaks TLS with a certificate of that one. `stop()` and `start()` keep its content and its port.
    """

    def __init__(self, folder: Path, ip: str, auth: str | None = None, authority: Authority | None = None,
                 port: int | None = None, netns: str | None = None):
        self.folder, self.ip, self.auth, self.authority, self.netns = folder, ip, auth, authority, netns
        self.port = port or (5000 if netns else free_port(ip))
        self.host = f"{ip}:{self.port}"
        self.url = f"{'https' if authority else 'http'}://{self.host}"
        self.user = ALICE if auth else None
        (folder / "data").mkdir(parents=True)
        self.token_server: Process | None = None
        self.config = folder / "config.yml"
        self.config.write_text(_CONFIG.format(folder=folder, ip=ip, port=self.port, tls=self._tls(), auth=self._auth()))
        self.log = folder / "registry.log"
        self.process: Process | None = None
        self.start()

    def start(self) -> None:
        self.process = Process("registry", ["docker-registry", "serve", self.config], self.log, self.netns,
                               env={"OTEL_TRACES_EXPORTER": "none"})
        wait_until(lambda: self.curl("/v2/", seconds=5)[0] or not self.process.running, 20, f"the registry answers on {self.host}")
        if not self.process.running:
            raise AssertionError(f"the registry did not start: {self.process.text()[-2000:]}")

    def stop(self) -> None:
        """Stops the registry; a token server stays."""
        self.process.stop()

    def close(self) -> None:
        self.process.stop()
        if self.token_server:
            self.token_server.stop()

    def curl(self, path: str, *words: str, seconds: int = 60) -> tuple[int, str]:
        """One request by curl, from where the registry is: the status (0 if nobody answers) and the answer's Location."""
        url = path if path.startswith("http") else self.url + path
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %header{location}", "--max-time", str(seconds), *words, url]
        if self.authority:
            command[1:1] = ["--cacert", str(self.authority.cert)]
        if self.netns:
            command = ["ip", "netns", "exec", self.netns, *command]
        status, _, location = subprocess.run(command, capture_output=True, text=True).stdout.partition(" ")
        return int(status or 0), location.strip()

    def authorization(self, repository: str) -> list[str]:
        """The words for `curl` that let it write to a repository."""
        if self.auth is None:
            return []
        if self.auth == "basic":
            return ["-H", f"Authorization: {self.user.basic}"]
        return ["-H", f"Authorization: Bearer {self.token(f'repository:{repository}:pull,push', self.user)}"]

    def token(self, scope: str, user: User | None) -> str:
        """A bearer token from the token server."""
        words = ["curl", "-s", "--fail", "--max-time", "10", "-G", "--data-urlencode", f"scope={scope}", "-d", "service=test+registry",
                 *(["-H", f"Authorization: {user.basic}"] if user else []), self.token_url]
        if self.netns:
            words = ["ip", "netns", "exec", self.netns, *words]
        return json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["token"]

    def reads(self) -> list[tuple[str, str, int, int]]:
        """Every GET and HEAD so far: method, path with query, status, bytes of the answer's body."""
        found = _ACCESS.findall(self.log.read_text(errors="replace"))
        return [(method, path, int(status), int(sent)) for method, path, status, sent in found]

    def blob_bytes(self) -> dict[str, int]:
        """Digest -> bytes of it that were sent so far, whole or in part."""
        sent: dict[str, int] = {}
        for method, path, status, count in self.reads():
            blob = _BLOB.match(path)
            if method == "GET" and blob and status in (200, 206):
                sent[blob[2]] = sent.get(blob[2], 0) + count
        return sent

    def _tls(self) -> str:
        if not self.authority:
            return ""
        cert, key = self.authority.issue(f"registry-{self.port}", self.ip, "localhost")
        return f"  tls:\n    certificate: {cert}\n    key: {key}\n"

    def _auth(self) -> str:
        if self.auth is None:
            return ""
        if self.auth == "basic":
            passwords = self.folder / "htpasswd"
            passwords.write_text(f"{ALICE.name}:{_bcrypt(ALICE.password)}\n")
            return f"auth:\n  htpasswd:\n    realm: private\n    path: {passwords}\n"
        if self.auth == "token":
            return self._start_token_server()
        raise AssertionError(f"{self.auth} is neither basic nor token")

    def _start_token_server(self) -> str:
        key, cert = self.folder / "token.key", self.folder / "token.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens",
                        "-keyout", key, "-out", cert], check=True, capture_output=True)
        port = 5001 if self.netns else free_port(self.ip)
        config = self.folder / "tokens.json"
        config.write_text(json.dumps({"ip": self.ip, "port": port, "issuer": "test tokens", "key": str(key), "cert": str(cert),
                                      "users": {ALICE.name: ALICE.password}}))
        self.token_url = f"http://{self.ip}:{port}/token"
        program = Path(__file__).with_name("token_server.py")
        self.token_server = Process("tokens", [sys.executable, program, config], self.folder / "tokens.log", self.netns)
        wait_until(lambda: self.curl(self.token_url)[0] or not self.token_server.running, 20, "the token server answers")
        return (f"auth:\n  token:\n    realm: {self.token_url}\n    service: test registry\n"
                f"    issuer: test tokens\n    rootcertbundle: {cert}\n")


def _bcrypt(password: str) -> str:
    """A line of htpasswd takes bcrypt, which crypt(3) of Debian knows."""
    done = subprocess.run(["perl", "-e", "print crypt($ARGV[0], q($2b$04$) . q(abcdefghijklmnopqrstuu))", password],
                          capture_output=True, text=True, check=True)
    if not done.stdout.startswith("$2b$"):
        raise AssertionError("crypt(3) of this system does not know bcrypt")
    return done.stdout
