"""The TLS of what we serve ourselves, from the certificate files that settings name."""

from __future__ import annotations

import ssl
from pathlib import Path

from infra.platform.settings import SettingsError


def server_tls(section: str, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext | None:
    """Return the context of a server with `<section>.tls_cert_file` and `.tls_key_file`; None without a certificate.

    Raises SettingsError for files that cannot be used.
    """
    if cert_file is None:
        if key_file is not None:
            raise SettingsError(f"{section}.tls_key_file is set, and {section}.tls_cert_file is not")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    names = f"{section}.tls_cert_file, {section}.tls_key_file"

    def locked() -> str:
        raise SettingsError(f"{names}: the key is locked by a passphrase; give one that is not, readable by us only")

    try:
        context.load_cert_chain(cert_file, key_file, password=locked)
    except OSError as error:
        raise SettingsError(f"{names} ({cert_file}, {key_file}) cannot be used: {error}") from None
    return context
