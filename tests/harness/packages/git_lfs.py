"""git with git-lfs, and a server of the LFS batch API in front of files that the web server gives."""

import json
import shutil
from pathlib import Path

from .api import Api, Handler
from .client import PackageManager, Reach, run

_AUTHOR = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "nobody"), ("EMAIL", "nobody@example.org"))}


class GitLfs(PackageManager):
    rule = r"/lfs/[0-9a-f]{64}$"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._api = Api(folder / "api.sock", _Batch)
        self.nginx = self._api.location("/git/sample.git/info/lfs/")

    def close(self) -> None:
        self._api.close()

    def publish(self, version: str, content: bytes) -> str:
        work, bare = self.folder / "git", self.www / "git/sample.git"
        if not bare.exists():
            work.mkdir()
            bare.parent.mkdir()
            run("git", "init", "--quiet", "--bare", "--initial-branch=main", bare, folder=work)
            run("git", "init", "--quiet", "--initial-branch=main", work, folder=work)
            run("git", "lfs", "install", "--local", "--skip-smudge", folder=work)
            run("git", "lfs", "track", "content", folder=work)
        (work / "content").write_bytes(content)
        run("git", "add", ".gitattributes", "content", folder=work)
        run("git", "commit", "--quiet", "--message", version, folder=work, env=_AUTHOR)
        # To a folder the objects need not go by LFS's own way.
        run("git", "push", "--quiet", "--no-verify", bare, "main", folder=work)
        run("git", "update-server-info", folder=bare)
        # The pointer's second line: oid sha256:...
        oid = run("git", "show", "HEAD:content", folder=work).splitlines()[1].split(":")[1]
        (self.www / "lfs").mkdir(exist_ok=True)
        shutil.copy(work / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid, self.www / "lfs" / oid)
        return f"lfs/{oid}"

    def install(self, reach: Reach, folder: Path) -> bytes:
        reach.run("git", "config", "--global", "http.proxy", reach.proxy, folder=folder)
        if reach.ca:
            reach.run("git", "config", "--global", "http.sslCAInfo", reach.ca, folder=folder)
        reach.run("git", "lfs", "install", folder=folder)
        reach.run("git", "clone", "--quiet", f"{reach.url}/git/sample.git", "clone", folder=folder, env={"GIT_TERMINAL_PROMPT": "0"})
        return (folder / "clone/content").read_bytes()


class _Batch(Handler):
    """Answers every question for objects with their place on the same web server."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        objects = [{**wanted, "actions": {"download": {"href": f"{self.root}/lfs/{wanted['oid']}"}}} for wanted in asked["objects"]]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
