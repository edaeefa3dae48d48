"""A certificate authority for one test, made with openssl."""

import subprocess
from pathlib import Path


def _openssl(*words) -> None:
    subprocess.run(["openssl", *[str(word) for word in words]], check=True, capture_output=True)


class Authority:
    """Its files are `folder/ca.pem` and `folder/ca.key`; it signs certificates for addresses and names."""

    def __init__(self, folder: Path, name: str = "dragonfly test CA"):
        self.folder = folder
        self.cert, self.key = folder / "ca.pem", folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.cert,
                 "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """The certificate and key files of a server, or a client, with these addresses or names."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        alternatives = ",".join(("IP:" if host[0].isdigit() else "DNS:") + host for host in hosts)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={hosts[0]}",
                 "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-days", "2",
                 "-extfile", extensions, "-out", cert)
        return cert, key
