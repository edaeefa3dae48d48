"""One unary gRPC call without a gRPC library: curl speaks HTTP/2, and the framing is five bytes."""

import struct
import subprocess
import urllib.parse


class GrpcError(AssertionError):
    """The status of a call that was answered with another one than OK."""

    def __init__(self, method: str, code: int, message: str):
        super().__init__(f"{method}: gRPC status {code}: {message}")
        self.code, self.message = code, message


def call(address: str, method: str, message: bytes = b"", seconds: int = 5, netns: str | None = None) -> bytes:
    """Sends an encoded message to `package.Service/Method` at `ip:port`, or at the path of a unix socket, and returns the
    encoded answer."""
    command = ["curl", "--silent", "--fail", "--max-time", str(seconds), "--http2-prior-knowledge",
               "--header", "content-type: application/grpc", "--header", "te: trailers",
               "--dump-header", "/dev/stderr", "--data-binary", "@-"]
    if address.startswith("/"):
        command += ["--unix-socket", address]
        address = "localhost"
    if netns:
        command = ["ip", "netns", "exec", netns, *command]
    answer = subprocess.run([*command, f"http://{address}/{method}"],
                            input=struct.pack(">BI", 0, len(message)) + message, capture_output=True, check=True)
    headers = dict(line.partition(":")[::2] for line in answer.stderr.decode().splitlines())
    code = int(headers.get("grpc-status", "0"))
    if code:
        raise GrpcError(method, code, urllib.parse.unquote(headers.get("grpc-message", "").strip()))
    compressed, length = struct.unpack(">BI", answer.stdout[:5])
    if compressed or len(answer.stdout) != 5 + length:
        raise AssertionError(f"{method}: {len(answer.stdout)} bytes are not one plain message")
    return answer.stdout[5:]


def field(number: int, content: bytes | str) -> bytes:
    """A field of text, of bytes or of an encoded message; none if it is empty."""
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content if content else b""


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])
