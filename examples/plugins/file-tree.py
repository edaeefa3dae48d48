#!/usr/bin/env python3
"""An origin plugin for Dragonfly: file-tree:///PATH is a file below the folder that FILE_TREE_ROOT names.

Put it, executable, into <server.pluginDir>/backend/ and set FILE_TREE_ROOT in the environment of the daemon; the name of the file
up to its first dot is the URL scheme. docs/plugins.md explains what is said between the daemon and this program.
"""

import json
import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

FRAME = 256 * 1024
ROOT = Path(os.environ.get("FILE_TREE_ROOT", "/nonexistent")).resolve()


def say(**line):
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")


def path_of(url: str) -> Path:
    """The file that a URL names, which never lies outside of the root."""
    path = (ROOT / unquote(urlsplit(url).path).lstrip("/")).resolve()
    if path != ROOT and ROOT not in path.parents:
        raise PermissionError("it lies outside of the tree")
    return path


def facts(path: Path) -> dict:
    status = path.stat()
    if path.is_dir():
        raise IsADirectoryError("it is a folder: end its URL with /")
    return {"content_length": status.st_size, "etag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"'}


def get(request: dict) -> None:
    path = path_of(request["url"])
    with path.open("rb") as file:
        known = facts(path)
        wanted = request.get("range", {"start": 0, "length": known["content_length"]})
        start = wanted["start"]
        rest = min(wanted["length"], max(known["content_length"] - start, 0))
        say(facts=known | {"start": start})
        file.seek(start)
        while rest > 0:
            data = file.read(min(rest, FRAME))
            if not data:
                return say(error={"kind": "changed", "message": "the file became shorter"})
            rest -= len(data)
            say(data=len(data))
            sys.stdout.buffer.write(data)
    say(end=True)


def listing(request: dict) -> None:
    base = path_of(request["url"])
    url = request["url"] if request["url"].endswith("/") else request["url"] + "/"
    for folder, folders, files in os.walk(base):
        below = os.path.relpath(folder, base)
        prefix = "" if below == "." else quote(below) + "/"
        depth = prefix.count("/") + 1
        entries = [{"url": f"{url}{prefix}{quote(name)}/", "is_dir": True} for name in folders]
        for name in files:
            size = os.stat(os.path.join(folder, name)).st_size
            entries.append({"url": f"{url}{prefix}{quote(name)}", "content_length": size})
        say(entries=entries)
        if depth >= request["depth"]:
            folders.clear()
    say(end=True)


def answer(request: dict) -> None:
    try:
        if request["op"] == "stat":
            say(facts=facts(path_of(request["url"])))
        elif request["op"] == "get":
            get(request)
        else:
            listing(request)
    except FileNotFoundError:
        say(error={"kind": "not_found", "message": "there is no such file"})
    except PermissionError as error:
        say(error={"kind": "forbidden", "message": str(error)})
    except IsADirectoryError as error:
        say(error={"kind": "invalid", "message": str(error)})


say(protocol="dragonfly-origin/1")
sys.stdout.buffer.flush()
for line in sys.stdin.buffer:
    answer(json.loads(line))
    sys.stdout.buffer.flush()
