"""A real nginx that serves one folder and counts what it sent."""

from pathlib import Path

from .certificates import Authority
from .process import Process, free_port, wait_until

_CONFIG = """
daemon off;
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format counted '$request_method $uri $status $body_bytes_sent';
    access_log {dir}/access.log counted;
    client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
    sendfile on;
    keepalive_requests 100000;
    server {{
        listen {ip}:{port} backlog=1024;
        {tls}
        root {dir}/www;
        {extra}
        location / {{ autoindex on; }}
    }}
}}
"""


class Origin:
    """The web server that a cluster reads from; with an `authority` it serves the same over TLS as well, at `tls_url`."""

    def __init__(self, folder: Path, ip: str, port: int | None = None, netns: str | None = None, extra: str = "",
                 authority: Authority | None = None, workers: int = 1):
        self.folder, self.ip = folder, ip
        port = port or (8080 if netns else free_port(ip))
        self.url = f"http://{ip}:{port}"
        tls = ""
        if authority:
            tls_port = 8443 if netns else free_port(ip)
            self.tls_url = f"https://{ip}:{tls_port}"
            cert, key = authority.issue("origin", ip)
            tls = f"listen {ip}:{tls_port} ssl backlog=1024; ssl_certificate {cert}; ssl_certificate_key {key};"
        self.www = folder / "www"
        self.www.mkdir(parents=True)
        folder.chmod(0o755)
        self.www.chmod(0o755)
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(dir=folder, ip=ip, port=port, extra=extra, tls=tls, workers=workers))
        self.process = Process("origin", ["nginx", "-e", folder / "error.log", "-c", config], folder / "nginx.log", netns)
        wait_until(lambda: (folder / "nginx.pid").exists() or not self.process.running, 10, "nginx serves")
        if not self.process.running:
            raise AssertionError(f"nginx did not start: {self.process.text()}{(folder / 'error.log').read_text()}")

    def file(self, name: str, size: int) -> Path:
        """A file of `size` random bytes."""
        path = self.www / name
        with open("/dev/urandom", "rb") as random, open(path, "wb") as out:
            left = size
            while left:
                block = random.read(min(left, 1 << 22))
                out.write(block)
                left -= len(block)
        path.chmod(0o644)
        return path

    def bytes_sent(self, name: str) -> int:
        """Body bytes of GET answers for `name` so far."""
        return self._sent().get(f"/{name}", 0)

    def bytes_sent_below(self, folder: str) -> int:
        """Body bytes of GET answers for all files in a folder so far."""
        return sum(sent for path, sent in self._sent().items() if path.startswith(f"/{folder}/"))

    def _sent(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for line in (self.folder / "access.log").read_text().splitlines():
            method, rest = line.split(" ", 1)
            path, _status, sent = rest.rsplit(" ", 2)
            if method == "GET":
                total[path] = total.get(path, 0) + int(sent)
        return total
