"""A certificate of our own, read from its files: for Kafka as a client, for the metrics page as a server."""

from __future__ import annotations

import ssl
from pathlib import Path

from infra.platform.settings import SettingsError


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None, settings: str) -> None:
    """Show this certificate to the other side. Raises SettingsError naming `settings`, also for a key that is locked
    by a passphrase, which OpenSSL would ask the terminal for."""

    def locked() -> str:
        raise SettingsError(f"{settings}: the key is locked by a passphrase; give one that is not, readable by us only")

    try:
        context.load_cert_chain(certificate, key, password=locked)
    except OSError as error:
        raise SettingsError(f"{settings} ({certificate}, {key}) cannot be used: {error}") from None
