"""Starts one object storage, puts the same objects into it, and serves until its standard input ends.

    objects.py s3|gcs|azure

The first line that it prints is a JSON object with what a reader needs: endpoint, keys, and the objects with their contents' lengths.
A key is odd on purpose wherever storages allow it. The content of an object is its key in UTF-8, repeated up to its length.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.process import free_port  # noqa: E402

BUCKET = "models"
OBJECTS = {
    "dir/plain.bin": 300_000,
    "dir/empty": 0,
    "dir/a b%+&?#=.txt": 40,
    "dir/ünïcode/文.txt": 60,
    "dir/deep/er/still": 10,
    "dir/folder/": 0,
    "other/x": 5,
}
# What an HTTP framework in front of an emulator would change; the real services and moto take it.
ODDER = {"dir/double//slash": 12, "dir/ends with space ": 8}


def content(key: str, length: int) -> bytes:
    text = key.encode()
    return (text * (length // len(text) + 1))[:length]


def wait_until(ready, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return ready()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def s3() -> dict:
    """moto, which checks every signature once its users are set up."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    anyone = {
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": "setup",
        "aws_secret_access_key": "setup",
    }
    iam = boto3.client("iam", **anyone)
    iam.create_user(UserName="reader")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    anybody = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}]}
    role = iam.create_role(RoleName="machine", AssumeRolePolicyDocument=json.dumps(anybody))["Role"]
    iam.put_role_policy(RoleName="machine", PolicyName="read", PolicyDocument=json.dumps(policy))
    passing = boto3.client("sts", **anyone).assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    client = boto3.client("s3", **anyone)
    client.create_bucket(Bucket=BUCKET)
    objects = OBJECTS | ODDER
    for name, length in objects.items():
        client.put_object(Bucket=BUCKET, Key=name, Body=content(name, length))
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", method="POST")
    request.add_header("Content-Type", "text/plain")
    urllib.request.urlopen(request).read()
    return {
        "endpoint": endpoint,
        "key_id": key["AccessKeyId"],
        "key_secret": key["SecretAccessKey"],
        "role": [passing["AccessKeyId"], passing["SecretAccessKey"], passing["SessionToken"]],
        "objects": objects,
    }


def gcs() -> dict:
    """An emulator of the JSON API, which asks for no credentials."""
    from gcp_storage_emulator.server import create_server

    port = free_port("127.0.0.1")
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    wait_until(lambda: socket.create_connection(("127.0.0.1", port)).close())
    for name, length in OBJECTS.items():
        # In two parts, as the emulator does not take an empty body in one.
        parts = [
            b"--part\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"name": name}).encode(),
            b"\r\n--part\r\nContent-Type: application/octet-stream\r\n\r\n" + content(name, length),
            b"\r\n--part--",
        ]
        request = urllib.request.Request(
            f"{endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart", data=b"".join(parts), method="POST"
        )
        request.add_header("Content-Type", "multipart/related; boundary=part")
        urllib.request.urlopen(request).read()
    return {"endpoint": endpoint, "objects": OBJECTS}


def azure() -> dict:
    """azurite, which checks every signature."""
    from azure.storage.blob import BlobServiceClient

    servers = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dragonfly-tests/node-servers"
    port = free_port("127.0.0.1")
    # The account that azurite is documented to have.
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    folder = tempfile.mkdtemp()
    process = subprocess.Popen(
        [
            "node",
            servers / "node_modules/azurite/dist/src/blob/main.js",
            *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
            *("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
        ],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    stop_at_end.append(process)
    wait_until(lambda: socket.create_connection(("127.0.0.1", port)).close())
    endpoint = f"http://127.0.0.1:{port}/{account}"
    client = BlobServiceClient(endpoint, credential={"account_name": account, "account_key": key})
    container = client.create_container(BUCKET)
    for name, length in OBJECTS.items():
        container.upload_blob(name, content(name, length))
    return {"endpoint": endpoint, "key_id": account, "key_secret": key, "objects": OBJECTS}


stop_at_end: list[subprocess.Popen] = []


def main() -> None:
    logging.disable(logging.CRITICAL)
    # The servers print their own lines; the reader gets only the one it waits for.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        facts = {"s3": s3, "gcs": gcs, "azure": azure}[sys.argv[1]]()
        print(json.dumps(facts | {"bucket": BUCKET}), file=out, flush=True)
        sys.stdin.buffer.read()
    finally:
        for process in stop_at_end:
            process.kill()
            process.wait()
    os._exit(0)


main()
