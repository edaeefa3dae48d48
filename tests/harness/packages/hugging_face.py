"""The library huggingface_hub, and a hub that sends it on to a store by signed URLs that are other ones each time."""

import hashlib
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from .api import Api, Handler
from .client import PackageManager, Reach
from .pip import PYTHON

# What the signed URLs of the hub's stores hold beside the file's identity.
_SIGNATURE = ["Expires", "Policy", "Signature", "Key-Pair-Id", "response-content-disposition", "response-content-type"]
_STORE = {"http": 8081, "https": 8444}


class HuggingFace(PackageManager):
    rule = r"/store/[0-9a-f]{64}$"
    filtered_query_params = _SIGNATURE

    def __init__(self, folder: Path):
        super().__init__(folder)
        manager = self

        class Hub(_Hub):
            @property
            def store(self) -> Path:
                return manager.www / "store"

        self._api = Api(folder / "api.sock", Hub)
        # The store is another origin than the hub: to the client, that is a matter of the port.
        self.nginx = f"listen {_STORE['http']}; listen {_STORE['https']} ssl; {self._api.location('/example/sample/')}"

    def close(self) -> None:
        self._api.close()

    def publish(self, version: str, content: bytes) -> str:
        store, digest = self.www / "store", hashlib.sha256(content).hexdigest()
        store.mkdir(exist_ok=True)
        (store / digest).write_bytes(content)
        (store / "main").write_text(digest)
        return f"store/{digest}"

    def install(self, reach: Reach, folder: Path) -> bytes:
        script = "import huggingface_hub; huggingface_hub.hf_hub_download('example/sample', 'model.bin', local_dir='out')"
        env = {"HF_ENDPOINT": reach.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
               "HTTP_PROXY": reach.proxy, "HTTPS_PROXY": reach.proxy}
        if reach.ca:
            env["SSL_CERT_FILE"] = str(reach.ca)
        reach.run(PYTHON, "-c", script, folder=folder, env=env)
        return (folder / "out/model.bin").read_bytes()


class _Hub(Handler):
    """`/example/sample/resolve/main/model.bin`: where the file of this moment is."""

    store: Path

    def do_HEAD(self):
        digest = (self.store / "main").read_text()
        query = "&".join(f"{name}={secrets.token_hex(16)}" for name in _SIGNATURE)
        hub = urlsplit(self.root)
        self.answer(302, Location=f"{hub.scheme}://{hub.hostname}:{_STORE[hub.scheme]}/store/{digest}?{query}", X_Repo_Commit=digest[:40], X_Linked_Etag=f'"{digest}"',
                    X_Linked_Size=str((self.store / digest).stat().st_size))

    do_GET = do_HEAD
