"""Aliyun OSS, Huawei OBS and Tencent COS as far as their public API documents say: addresses, signatures, ranges and listings.

None of the three offers a server of its own to run, so this one checks what a client sends against the documented algorithm
and refuses everything else with 403. Prints one line of JSON and serves until its standard input ends.

- OSS, signature V1: https://help.aliyun.com/document_detail/31951.html
- OBS: https://support.huaweicloud.com/api-obs/obs_04_0010.html
- COS: https://cloud.tencent.com/document/product/436/7778
"""

import base64
import hashlib
import hmac
import json
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

KEY_ID, KEY_SECRET, TOKEN = "test-id", "test-secret", "test-token"
BUCKET = "models-125"
OBJECTS = {"dir/plain.bin": 300_000, "dir/empty": 0, "dir/a b%+&?#=.txt": 40, "dir/ünïcode/文.txt": 60, "dir/folder/": 0, "other/x": 5}
PAGE = 2
# Query parameters that belong to the resource that OSS and OBS sign, as far as a reader uses them.
OSS_SIGNED = {"continuation-token"}


def content(key: str, length: int) -> bytes:
    text = key.encode()
    return (text * (length // len(text) + 1))[:length]


def sha1_hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha1).digest()


def strict(text: str) -> str:
    return quote(text, safe="-_.~")


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

    def do_GET(self):
        url = urlsplit(self.path)
        host = self.headers["Host"].rsplit(":", 1)[0]
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        checks = {
            f"{BUCKET}.oss.localhost": self.oss,
            "files.obs-domain.localhost": self.obs,
            f"{BUCKET}.cos.localhost": self.cos,
        }
        check = checks.get(host)
        if check is None:
            return self.reply(404, f"no bucket at {host}".encode())
        expected = check(unquote(url.path), query, host)
        if self.headers.get("Authorization") != expected:
            print(f"refused {self.path}: got {self.headers.get('Authorization')!r}, expected {expected!r}", file=sys.stderr)
            return self.reply(403)
        if url.path == "/":
            return self.listing(query)
        key = unquote(url.path[1:])
        if key not in OBJECTS:
            return self.reply(404)
        return self.object(content(key, OBJECTS[key]))

    def oss(self, path: str, query: dict, _host: str) -> str:
        if self.headers.get("x-oss-security-token") != TOKEN:
            return "the token"
        return self.v1("OSS", "x-oss-", f"/{BUCKET}{path}", {name: query[name] for name in query if name in OSS_SIGNED})

    def obs(self, path: str, query: dict, host: str) -> str:
        # A domain of one's own is signed in place of the bucket. OBS signs the path as it is sent.
        return self.v1("OBS", "x-obs-", f"/{host}{urlsplit(self.path).path}", {})

    def v1(self, name: str, prefix: str, resource: str, signed: dict) -> str:
        special = sorted((header.lower(), value) for header, value in self.headers.items() if header.lower().startswith(prefix))
        date = "" if any(header == f"{prefix}date" for header, _ in special) and name == "OBS" else self.headers.get("Date", "")
        if signed:
            resource += "?" + "&".join(f"{key}={value}" for key, value in sorted(signed.items()))
        text = "\n".join(
            [self.command, self.headers.get("Content-MD5", ""), self.headers.get("Content-Type", ""), date]
            + [f"{header}:{value}" for header, value in special]
            + [resource]
        )
        return f"{name} {KEY_ID}:{base64.b64encode(sha1_hmac(KEY_SECRET.encode(), text)).decode()}"

    def cos(self, path: str, query: dict, _host: str) -> str:
        parts = dict(part.split("=", 1) for part in self.headers.get("Authorization", "").split("&") if "=" in part)
        headers = {name.lower(): value for name, value in self.headers.items()}
        named = [name for name in parts.get("q-header-list", "").split(";") if name]
        if sorted(named) != named or not all(name in headers for name in named):
            return "the list of headers"
        params = sorted((strict(name).lower(), strict(value)) for name, value in query.items())
        if parts.get("q-url-param-list") != ";".join(name for name, _ in params):
            return "the list of parameters"
        key = sha1_hmac(KEY_SECRET.encode(), parts.get("q-key-time", "")).hex()
        request = "\n".join(
            [
                self.command.lower(),
                path,
                "&".join(f"{name}={value}" for name, value in params),
                "&".join(f"{strict(name).lower()}={strict(headers[name])}" for name in named),
                "",
            ]
        )
        text = "\n".join(["sha1", parts.get("q-sign-time", ""), hashlib.sha1(request.encode()).hexdigest(), ""])
        expected = parts | {"q-sign-algorithm": "sha1", "q-ak": KEY_ID, "q-signature": sha1_hmac(key.encode(), text).hex()}
        return "&".join(f"{name}={value}" for name, value in expected.items())

    def object(self, body: bytes) -> None:
        etag = '"' + hashlib.md5(body).hexdigest() + '"'
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return self.reply(412)
        text = self.headers.get("Range", "")
        if not text:
            return self.reply(200, body, ETag=etag)
        first, last = text.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last), len(body) - 1)
        if first >= len(body):
            return self.reply(416, Content_Range=f"bytes */{len(body)}")
        return self.reply(206, body[first : last + 1], ETag=etag, Content_Range=f"bytes {first}-{last}/{len(body)}")

    def listing(self, query: dict) -> None:
        after = query.get("continuation-token", query.get("marker", ""))
        keys = [key for key in sorted(OBJECTS) if key.startswith(query.get("prefix", "")) and key > after]
        page = keys[:PAGE]
        more = len(keys) > PAGE
        xml = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{OBJECTS[key]}</Size></Contents>" for key in page)
        if more:
            name = "NextContinuationToken" if "list-type" in query else "NextMarker"
            xml += f"<{name}>{escape(page[-1])}</{name}>"
        xml = f"<?xml version='1.0'?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{xml}</ListBucketResult>"
        self.reply(200, xml.encode(), Content_Type="application/xml", Date=formatdate(usegmt=True))


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    facts = {
        "bucket": BUCKET,
        "key_id": KEY_ID,
        "key_secret": KEY_SECRET,
        "token": TOKEN,
        "objects": OBJECTS,
        "oss": f"http://oss.localhost:{port}",
        "obs": f"http://files.obs-domain.localhost:{port}",
        "cos": f"http://cos.localhost:{port}",
    }
    print(json.dumps(facts), flush=True)
    sys.stdin.buffer.read()


main()
