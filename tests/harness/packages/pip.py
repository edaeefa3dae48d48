"""pip, in a virtual environment, and an index of the simple form."""

import hashlib
import os
from pathlib import Path

from .client import PackageManager, Reach, archive


# The virtual environment that scripts/install-deps.sh makes, with the libraries that the tests use.
PYTHON = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dragonfly-tests/python/bin/python"


class Pip(PackageManager):
    rule = r"\.(whl|tar\.gz|zip)$"

    def publish(self, version: str, content: bytes) -> str:
        name, info = f"sample-{version}-py3-none-any.whl", f"sample-{version}.dist-info"
        files = {
            "sample/__init__.py": f"__version__ = '{version}'\n".encode(),
            "sample/content": content,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: sample\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        wheel = self.www / "pip/packages" / name
        archive(wheel, {**files, f"{info}/RECORD": record.encode()})
        page = self.www / "pip/simple/sample/index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        links = (f'<a href="../../packages/{found.name}#sha256={hashlib.sha256(found.read_bytes()).hexdigest()}">{found.name}</a>\n'
                 for found in sorted(wheel.parent.iterdir()))
        page.write_text(f"<!DOCTYPE html>\n<html><body>\n{''.join(links)}</body></html>\n")
        return f"pip/packages/{name}"

    def install(self, reach: Reach, folder: Path) -> bytes:
        settings = f"[global]\nindex-url = {reach.url}/pip/simple/\nproxy = {reach.proxy}\n"
        settings += f"cert = {reach.ca}\n" if reach.ca else f"trusted-host = {reach.host}\n"
        (folder / "pip.conf").write_text(settings)
        reach.run(PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--target", folder / "packages", "sample",
                  folder=folder, env={"PIP_CONFIG_FILE": str(folder / "pip.conf")})
        return (folder / "packages/sample/content").read_bytes()
