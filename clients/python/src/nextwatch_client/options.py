"""Options of the connection: the brokers, and the names of the two topics there."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nextwatch_client.errors import OptionsError
from nextwatch_client.patches import Connections


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """A connection to Kafka: plain, or with a login (SASL), TLS and a certificate of one's own.

    `topic_prefix` is put before both topic names. A larger reply than `max_reply_bytes` is not read and fails its
    request. With TLS the brokers' certificate and name are always checked.
    """

    bootstrap: str  # host:port[,host:port]
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str = ""
    password: str = field(default="", repr=False)
    ssl_ca_file: Path | None = None  # certificate authority, PEM; None: those of the machine
    ssl_cert_file: Path | None = None  # this client's certificate, PEM
    ssl_key_file: Path | None = None  # this client's key, PEM, not locked by a passphrase
    topic_prefix: str = ""
    request_topic: str = "recommend-requests"
    reply_topic: str = "recommend-replies"
    max_reply_bytes: int = 8_000_000

    @property
    def requests(self) -> str:
        """The request topic's whole name."""
        return self.topic_prefix + self.request_topic

    @property
    def replies(self) -> str:
        """The reply topic's whole name."""
        return self.topic_prefix + self.reply_topic

    def kafka_python(self) -> dict[str, Any]:
        """Keyword arguments of kafka-python's consumer and producer. Raises OptionsError for a file of no use."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap.split(","),
            "security_protocol": self.security_protocol,
            "kafka_client": Connections,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_file)
        except OSError as error:  # ssl.SSLError, of a file that is no PEM, is one too
            raise OptionsError(("ssl_ca_file",), f" {self.ssl_ca_file} cannot be used: {error}") from None
        if self.ssl_cert_file:
            try:
                context.load_cert_chain(self.ssl_cert_file, self.ssl_key_file, password=_refuse_locked_key)
            except OSError as error:
                why = f" ({self.ssl_cert_file}, {self.ssl_key_file}) cannot be used: {error}"
                raise OptionsError(("ssl_cert_file", "ssl_key_file"), why) from None
        return context


def _refuse_locked_key() -> str:
    """Raise OptionsError, where OpenSSL would ask the terminal for a passphrase."""
    why = ": the key is locked by a passphrase; give one that is not, readable by you only"
    raise OptionsError(("ssl_key_file",), why)
