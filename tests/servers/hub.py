"""A model hub after the public API of Hugging Face, ModelScope and OpenCSG, with a store for large files on another port.

Prints one line of JSON with the two addresses and serves until its standard input ends. What it does on purpose:

- large files are a redirect to the store, signed for one use of one content and refused there if a token comes along;
- `owner/gated` wants the token `good`, and says why not in `X-Error-Message`;
- `owner/liar` promises another length than the store has;
- GET /sent tells how many bytes the store has sent;
- a POST to /move lets the branch `main` name another commit, in which every file has other bytes of the same length.
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 100_000
COMMITS = ["1" * 40, "2" * 40]
LENGTHS = {"config.json": 500, "weights/model 1.safetensors": 300_000, "empty.txt": 0}
state = {"main": 0, "signed": 0, "sent": 0}
store_address = ""


def content(commit: int, path: str) -> bytes:
    text = f"{commit} {path}\n".encode()
    length = LENGTHS[path]
    return (text * (length // len(text) + 1))[:length]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_content(self, body: bytes, etag: str, **headers: str) -> None:
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return self.reply(412, ETag=etag)
        text = self.headers.get("Range", "")
        if not text:
            return self.reply(200, body, ETag=etag, Accept_Ranges="bytes", **headers)
        first, last = text.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last), len(body) - 1)
        if first >= len(body):
            return self.reply(416, Content_Range=f"bytes */{len(body)}")
        part = body[first : last + 1]
        return self.reply(206, part, ETag=etag, Content_Range=f"bytes {first}-{last}/{len(body)}", **headers)

    def do_HEAD(self):
        self.do_GET()


class Hub(Handler):
    def do_POST(self):
        state["main"] = 1
        self.reply(204)

    def do_GET(self):
        url = urlsplit(self.path)
        names = [unquote(name) for name in url.path.split("/")[1:]]
        if names[0] == "csg":
            names = names[1:]
        if names == ["sent"]:
            return self.reply(200, str(state["sent"]).encode())
        if names[0] == "api":
            return self.listing(names[1:], parse_qs(url.query))
        if names[0] in ("models", "datasets", "spaces", "mcps"):
            names = names[1:]
        owner, repo, verb, revision, *path = names
        if verb != "resolve" or (commit := self.commit(revision)) is None or not self.allowed(repo):
            return None
        path = "/".join(path)
        if path not in LENGTHS:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        body = content(commit, path)
        if len(body) < LARGE:
            etag = '"' + hashlib.sha1(body).hexdigest() + '"'
            return self.reply_content(body, etag, X_Repo_Commit=COMMITS[commit])
        state["signed"] += 1
        size = len(body) + (1 if repo == "liar" else 0)
        return self.reply(
            302,
            Location=f"{store_address}/{commit}/{quote(path)}?Signature={state['signed']}",
            X_Linked_Etag=f'"{hashlib.sha256(b"other bytes" if repo == "forged" else body).hexdigest()}"',
            X_Linked_Size=str(size),
            X_Repo_Commit=COMMITS[commit],
        )

    def commit(self, revision: str):
        if revision in ("main", "master", "refs/pr/1"):
            return state["main"]
        if revision in COMMITS:
            return COMMITS.index(revision)
        return self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")

    def allowed(self, repo: str) -> bool:
        if repo == "gated" and self.headers.get("Authorization") != "Bearer good":
            self.reply(401, X_Error_Code="GatedRepo", X_Error_Message="Access to this repo is restricted")
            return False
        return True

    def listing(self, names: list[str], query: dict) -> None:
        if names[0] == "v1":
            repo, revision = names[3], query["Revision"][0]
            if self.commit(revision) is None or not self.allowed(repo):
                return None
            files = [{"Path": path, "Type": "blob", "Size": size} for path, size in LENGTHS.items()]
            answer = {"Code": 200, "Data": {"Files": [{"Path": "weights", "Type": "tree", "Size": 0}, *files]}}
        else:
            repo, revision = names[2], names[4]
            if self.commit(revision) is None or not self.allowed(repo):
                return None
            siblings = [{"rfilename": path, "size": size} for path, size in LENGTHS.items()]
            if repo == "climber":
                siblings.append({"rfilename": "../../etc/passwd", "size": 1})
            answer = {"id": f"{names[1]}/{repo}", "sha": COMMITS[state["main"]], "siblings": siblings}
        return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")


class Store(Handler):
    used: set[str] = set()

    def do_GET(self):
        if self.headers.get("Authorization"):
            return self.reply(400, b"a token must not come here")
        url = urlsplit(self.path)
        _, commit, path = unquote(url.path).split("/", 2)
        first, _, last = self.headers.get("Range", f"bytes=0-{LENGTHS[path] - 1}").removeprefix("bytes=").partition("-")
        state["sent"] += min(int(last), LENGTHS[path] - 1) - int(first) + 1
        # The store's own idea of a version, in which the hub has no part.
        return self.reply_content(content(int(commit), path), f'"{commit}-{LENGTHS[path]}"')


def main() -> None:
    global store_address
    store = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    store_address = f"http://127.0.0.1:{store.server_port}"
    for server in (store, hub):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"hub": f"http://127.0.0.1:{hub.server_port}", "store": store_address}), flush=True)
    sys.stdin.buffer.read()


main()
