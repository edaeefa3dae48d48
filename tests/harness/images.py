"""Container images made for a test, and pushed to a registry by its API.

`Images` is a folder in the OCI image layout, so that skopeo and umoci read it too. A layer is a dictionary of paths and
contents, where a number stands for so many bytes that do not compress.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from .registry import Registry

OCI = "application/vnd.oci.image"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Blob:
    """What a descriptor says of a blob; `platform` in an index only."""

    media_type: str
    digest: str
    size: int
    platform: tuple[str, str] | None = None

    def descriptor(self) -> dict:
        found = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform:
            found["platform"] = {"os": self.platform[0], "architecture": self.platform[1]}
        return found


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer's blob, and the digest of what it unpacks to."""

    blob: Blob
    diff_id: str


@dataclasses.dataclass(frozen=True)
class Image:
    """A manifest or an index with all that it refers to; `children` come before their parent in a push."""

    blob: Blob
    blobs: tuple[Blob, ...] = ()
    children: tuple["Image", ...] = ()

    @property
    def size(self) -> int:
        """Bytes of config and layers, each counted once."""
        return sum({blob.digest: blob.size for blob in self.all_blobs()}.values())

    def all_blobs(self) -> list[Blob]:
        return [*self.blobs, *(blob for child in self.children for blob in child.all_blobs())]


class _Noise:
    """A file without an end, of which no two blocks are equal and none compresses."""

    def __init__(self):
        self._number, self._block = 0, os.urandom(_BLOCK)

    def read(self, count: int) -> bytes:
        """`count` is at most a block."""
        self._number += 1
        return (self._number.to_bytes(8, "big") + self._block[8:])[:count]


class _Hashing:
    """Passes on what is written, and digests it."""

    def __init__(self, inner):
        self._inner, self._digest = inner, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._inner.write(data)

    def flush(self) -> None:
        self._inner.flush()

    @property
    def digest(self) -> str:
        return "sha256:" + self._digest.hexdigest()


class Images:
    """Builds images into `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self._named: dict[str, Blob] = {}

    def path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def layer(self, files: dict[str, bytes | int | Path], compression: str = "gzip") -> Layer:
        """`compression` is gzip, stored (gzip that does not try), zstd or none."""
        draft = self._blobs / "draft"
        with open(draft, "wb") as file:
            packed = _Hashing(file)
            if compression == "none":
                diff_id = _tar(files, packed)
            elif compression == "zstd":
                diff_id = self._zstd(files, packed)
            else:
                level = 0 if compression == "stored" else 6
                with gzip.GzipFile("", "wb", level, packed, mtime=0) as squeezed:
                    diff_id = _tar(files, squeezed)
        end = {"none": "", "zstd": "+zstd"}.get(compression, "+gzip")
        return Layer(Blob(f"{OCI}.layer.v1.tar{end}", packed.digest, self._keep(draft, packed.digest)), diff_id)

    def _zstd(self, files: dict, packed: _Hashing) -> str:
        unpacked = self._blobs / "unpacked"
        with open(unpacked, "wb") as tar:
            diff_id = _tar(files, tar)
        done = subprocess.run(["zstd", "-q", "-1", "-c", unpacked], capture_output=True, check=True)
        unpacked.unlink()
        packed.write(done.stdout)
        return diff_id

    def image(self, layers: list[Layer], platform: tuple[str, str] = ("linux", "amd64"), command: list[str] | None = None) -> Image:
        config = self._json(f"{OCI}.config.v1+json", {
            "os": platform[0], "architecture": platform[1],
            "config": {"Cmd": command or ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        })
        manifest = self._json(f"{OCI}.manifest.v1+json", {
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
            "config": config.descriptor(), "layers": [layer.blob.descriptor() for layer in layers],
        })
        return Image(dataclasses.replace(manifest, platform=platform), (config, *(layer.blob for layer in layers)))

    def index(self, images: list[Image]) -> Image:
        """One image for several platforms."""
        blob = self._json(f"{OCI}.index.v1+json", {
            "schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json",
            "manifests": [image.blob.descriptor() for image in images],
        })
        return Image(blob, (), tuple(images))

    def name(self, image: Image, name: str) -> str:
        """Lists the image in index.json; returns the address for skopeo."""
        self._named[name] = image.blob
        manifests = [{**blob.descriptor(), "annotations": {"org.opencontainers.image.ref.name": name}}
                     for name, blob in self._named.items()]
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        return f"oci:{self.folder}:{name}"

    def push(self, image: Image, registry: Registry, repository: str, tag: str = "latest") -> str:
        """Uploads all of it; returns the reference for a pull."""
        access = registry.authorization(repository)
        for digest in dict.fromkeys(blob.digest for blob in image.all_blobs()):
            status, location = registry.curl(f"/v2/{repository}/blobs/uploads/", "-X", "POST", *access)
            _expect(status, 202, repository)
            status, _ = registry.curl(f"{location}{'&' if '?' in location else '?'}digest={digest}", "-T", str(self.path(digest)),
                                      "-H", "Content-Type: application/octet-stream", *access, seconds=300)
            _expect(status, 201, digest)
        for child in image.children:
            self._push_manifest(child.blob, registry, repository, child.blob.digest, access)
        self._push_manifest(image.blob, registry, repository, tag, access)
        return f"{registry.host}/{repository}:{tag}"

    def _push_manifest(self, blob: Blob, registry: Registry, repository: str, reference: str, access: list[str]) -> None:
        status, _ = registry.curl(f"/v2/{repository}/manifests/{reference}", "-T", str(self.path(blob.digest)),
                                  "-H", f"Content-Type: {blob.media_type}", *access)
        _expect(status, 201, f"{repository}:{reference}")

    def _json(self, media_type: str, content: dict) -> Blob:
        data = json.dumps(content).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.path(digest).write_bytes(data)
        return Blob(media_type, digest, len(data))

    def _keep(self, draft: Path, digest: str) -> int:
        size = draft.stat().st_size
        draft.rename(self.path(digest))
        return size


def hello(folder: Path, text: str = "hello from the image") -> Path:
    """A program that needs no library, says `text` and ends: what a container can run."""
    source, program = folder / "hello.c", folder / "hello"
    source.write_text(f'#include <stdio.h>\nint main(void) {{ puts("{text}"); return 0; }}\n')
    subprocess.run(["cc", "-static", "-O1", "-o", program, source], check=True, capture_output=True)
    return program


def _tar(files: dict[str, bytes | int | Path], out) -> str:
    """Writes an archive and returns the digest of it."""
    hashing = _Hashing(out)
    with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK, copybufsize=_BLOCK) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode = 0o755
            if isinstance(content, Path):
                content = content.read_bytes()
            if isinstance(content, int):
                member.size = content
                tar.addfile(member, _Noise())
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return hashing.digest


def _expect(status: int, wanted: int, what: str) -> None:
    if status != wanted:
        raise AssertionError(f"pushing {what}: the registry answered {status} instead of {wanted}")
