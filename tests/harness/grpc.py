"""One unary gRPC call without a gRPC library: curl speaks HTTP/2, and the framing is five bytes."""

import struct
import subprocess


def call(address: str, method: str, message: bytes = b"", seconds: int = 5) -> bytes:
    """Sends an encoded message to `package.Service/Method` at `ip:port` and returns the encoded answer."""
    command = ["curl", "--silent", "--fail", "--max-time", str(seconds), "--http2-prior-knowledge",
               "--header", "content-type: application/grpc", "--header", "te: trailers",
               "--data-binary", "@-", f"http://{address}/{method}"]
    answer = subprocess.run(command, input=struct.pack(">BI", 0, len(message)) + message, capture_output=True, check=True)
    compressed, length = struct.unpack(">BI", answer.stdout[:5])
    if compressed or len(answer.stdout) != 5 + length:
        raise AssertionError(f"{method}: {len(answer.stdout)} bytes are not one plain message")
    return answer.stdout[5:]
