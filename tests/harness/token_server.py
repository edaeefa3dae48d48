#!/usr/bin/env python3
"""A token server of the registry protocol: signs who may do what, as a JWT that docker-registry verifies.

usage: token_server.py CONFIG.json

The configuration names `ip`, `port`, `issuer`, `key` and `cert` (files; RSA), and `users`: name -> password. Every user may do
everything; who comes without credentials may pull from repositories whose name begins with `public/`. Each grant is a
line on standard output: the user and the scopes.
"""

import base64
import json
import subprocess
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        user = self._user(self.headers.get("Authorization"))
        if user is None:
            return self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]})
        access = [grant for scope in query.get("scope", []) for word in scope.split() if (grant := self._grant(user, word))]
        token = self._token(query.get("service", [""])[0], user, access)
        print(user or "anonymous", json.dumps(access), flush=True)
        return self._answer(200, {"token": token, "access_token": token, "expires_in": 300})

    def do_POST(self) -> None:
        """Clients that try OAuth2 first get the answer after which they use GET."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(404, {})

    def _user(self, authorization: str | None) -> str | None:
        """The name, "" for nobody, None for wrong credentials."""
        if not authorization:
            return ""
        try:
            scheme, encoded = authorization.split(" ", 1)
            name, password = base64.b64decode(encoded).decode().split(":", 1)
        except ValueError:
            return None
        known = self.server.config["users"].get(name)
        return name if scheme.lower() == "basic" and known is not None and known == password else None

    @staticmethod
    def _grant(user: str, scope: str) -> dict | None:
        kind, name, actions = scope.split(":", 2)[0], scope.split(":", 1)[1].rsplit(":", 1)[0], scope.rsplit(":", 1)[1]
        wanted = actions.split(",")
        if not user:
            wanted = [action for action in wanted if action == "pull" and name.startswith("public/")]
        return {"type": kind, "name": name, "actions": wanted} if wanted else None

    def _token(self, service: str, user: str, access: list) -> str:
        config, now = self.server.config, int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self.server.certificate]}
        claims = {"iss": config["issuer"], "sub": user, "aud": service, "iat": now, "nbf": now - 60, "exp": now + 300,
                  "jti": f"{now}-{id(access)}", "access": access}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        done = subprocess.run(["openssl", "dgst", "-sha256", "-sign", config["key"]], input=signed.encode(),
                              capture_output=True, check=True)
        return f"{signed}.{_base64url(done.stdout)}"

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words) -> None:
        """Nothing: a grant is what is worth a line."""


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    server = ThreadingHTTPServer((config["ip"], config["port"]), _Handler)
    server.daemon_threads = True
    server.config = config
    pem = Path(config["cert"]).read_text()
    server.certificate = "".join(pem.split("-----")[2].split())
    server.serve_forever()


if __name__ == "__main__":
    main()
