"""What all package managers have in common."""

import dataclasses
import os
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

# Longest time for one step of a client on a busy machine. None of them takes more than some seconds.
_STEP = 120


@dataclasses.dataclass(frozen=True)
class Reach:
    """How a client on one host gets to the repository."""

    # The web server's root: http, or https with `ca`.
    url: str
    # The daemon's proxy, http://ip:port.
    proxy: str
    # What has signed the certificate that the client sees.
    ca: Path | None = None
    # The network namespace that is the host.
    netns: str | None = None

    @property
    def proxy_ip(self) -> str:
        return urlsplit(self.proxy).hostname

    @property
    def proxy_port(self) -> int:
        return urlsplit(self.proxy).port

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname

    def run(self, *argv, folder: Path, env: dict | None = None) -> str:
        """`run` on that host."""
        return run(*(["ip", "netns", "exec", self.netns] if self.netns else []), *argv, folder=folder, env=env)


class PackageManager:
    """A repository, and its client."""

    # The root of the web server, to be set before anything is published.
    www: Path

    # Which URLs the daemons share: those that never change. The regular expression of docs/package-managers.md.
    rule: str
    # Query parameters that are no part of a package's identity; None: those that the daemon leaves out by itself.
    filtered_query_params: list[str] | None = None
    # What the web server needs to know, inside its `server` block.
    nginx = ""

    def __init__(self, folder: Path):
        """`folder` is for what gets built."""
        self.folder = folder

    def publish(self, version: str, content: bytes) -> str:
        """Brings out a version with this content, makes the index anew, and returns the package's path below `www`."""
        raise NotImplementedError

    def install(self, reach: Reach, folder: Path) -> bytes:
        """Installs the newest version with a client that knows nothing yet, and returns the package's content."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what runs for the repository."""


def run(*argv, folder: Path, env: dict | None = None) -> str:
    """Runs a step of a client to its end, in its folder and without settings of this machine; returns what it printed."""
    words = [str(word) for word in argv]
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})}
    done = subprocess.run(words, cwd=folder, env=clean, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=_STEP)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def archive(path: Path, files: dict[str, bytes]) -> None:
    """A zip file, as wheels and jars are; not compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
