"""The part of a repository that has to think: a small HTTP server behind the web server."""

import http.server
import json
import socketserver
import threading
from pathlib import Path


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    # On a path, so that the web server finds it from whatever network it is in.
    daemon_threads = True


class Api:
    """Answers requests with `handler` until `close`; `location` tells the web server which requests those are."""

    def __init__(self, socket: Path, handler: type["Handler"]):
        self._socket = socket
        self._server = _Server(str(socket), handler)
        # The web server's workers are nobody.
        socket.chmod(0o666)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def location(self, which: str) -> str:
        return f"""location {which} {{
            proxy_pass http://unix:{self._socket};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}"""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    """Requests as the web server passes them on."""

    protocol_version = "HTTP/1.1"

    @property
    def root(self) -> str:
        """The web server, as the client has called it."""
        return f"{self.headers['X-Forwarded-Proto']}://{self.headers['Host']}"

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        """Answers with JSON, or with nothing. An underscore in a header's name is a hyphen."""
        encoded = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers, "Content_Length": str(len(encoded))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(encoded)

    def log_message(self, *_words):
        pass
