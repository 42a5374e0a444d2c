"""Certificates for tests, made by openssl: for 127.0.0.1 and a day, by an authority of their own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.platform.port_locks import LOOPBACK
from tests.harness.needs import OPENSSL, require

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-keyout")


@dataclass(frozen=True)
class Certificates:
    """PEM files: a key and its certificate lie side by side as `<name>.key` and `<name>.pem`."""

    directory: Path

    def pem(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def make_authority(self, name: str) -> None:
        self._openssl("req", "-x509", *_NEW_KEY, self.key(name), "-out", self.pem(name), "-subj", f"/CN={name}")

    def make(self, name: str, authority: str) -> None:
        """A certificate for 127.0.0.1, good for a server and for a client."""
        signed_by = ("-CA", self.pem(authority), "-CAkey", self.key(authority))
        address = ("-addext", f"subjectAltName=IP:{LOOPBACK}", "-addext", "basicConstraints=critical,CA:FALSE")
        subject = ("-subj", f"/CN={name}")
        self._openssl("req", "-x509", *_NEW_KEY, self.key(name), "-out", self.pem(name), *subject, *address, *signed_by)

    def lock(self, name: str, locked: str) -> None:
        """The same key, under a passphrase."""
        self._openssl("ec", "-in", self.key(name), "-out", self.key(locked), "-aes256", "-passout", "pass:secret")

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True, timeout=60)


def make_certificates(directory: Path) -> Certificates:
    """Of a server and a client by one authority; `stranger` is another authority."""
    require(OPENSSL)
    certificates = Certificates(directory)
    for authority in ("authority", "stranger"):
        certificates.make_authority(authority)
    for name in ("server", "client"):
        certificates.make(name, "authority")
    return certificates
