"""A metadata service of a cloud machine, at the address where machines of Amazon and Google have it.

    metadata.py IP KEY_ID KEY_SECRET SESSION_TOKEN BEARER_TOKEN

By the documents of IMDSv2 (a session token is asked for by PUT and sent along) it gives the keys of the machine's role,
and by those of Compute Engine (`Metadata-Flavor: Google`) the bearer token. Prints {} when it serves; ends with its standard input.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IP, KEY_ID, KEY_SECRET, SESSION_TOKEN, BEARER_TOKEN = sys.argv[1:]
SESSION = "session-of-this-machine"
ROLES = "/latest/meta-data/iam/security-credentials/"


class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        if self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            self.answer(SESSION)
        else:
            self.answer("", 400)

    def do_GET(self) -> None:
        if self.path.startswith("/computeMetadata/v1/instance/service-accounts/default/token"):
            known = self.headers["Metadata-Flavor"] == "Google"
            self.answer(json.dumps({"access_token": BEARER_TOKEN, "expires_in": 3600, "token_type": "Bearer"}) if known else "", 200 if known else 403)
        elif self.headers["X-aws-ec2-metadata-token"] != SESSION:
            self.answer("", 401)
        elif self.path == ROLES:
            self.answer("reader")
        elif self.path == ROLES + "reader":
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600))
            self.answer(json.dumps({"Code": "Success", "LastUpdated": until, "Type": "AWS-HMAC", "AccessKeyId": KEY_ID,
                                    "SecretAccessKey": KEY_SECRET, "Token": SESSION_TOKEN, "Expiration": until}))
        else:
            self.answer("", 404)

    def answer(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_words) -> None:
        pass


server = ThreadingHTTPServer((IP, 80), Metadata)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("{}", flush=True)
sys.stdin.buffer.read()
