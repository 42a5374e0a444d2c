"""A real Kafka that lets nobody in without credentials: SCRAM over TLS on one port, client certificates on another."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from infra.local.broker import server_properties
from infra.platform.guarded_process import start_guarded, wait_until_ready
from infra.platform.port_locks import LOOPBACK, free_port, is_listening
from infra.platform.settings import Kafka
from tests.harness.needs import KAFKA, require
from tests.unit.infra.certificates import Certificates, make_certificates

USER, PASSWORD = "nextwatch", "correct-horse-battery"
READY_S = 90.0


@dataclass(frozen=True)
class Secured:
    """Where it listens, and the settings that get in."""

    scram_port: int
    certificate_port: int
    own_port: int  # of the broker itself, without a password
    certificates: Certificates

    def scram(self, **changes: Any) -> Kafka:
        """SASL_SSL with the right user, password and authority, unless `changes` say otherwise."""
        right = {
            "bootstrap": f"{LOOPBACK}:{self.scram_port}",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": USER,
            "password": SecretStr(PASSWORD),
            "ssl_ca_file": self.certificates.pem("authority"),
        }
        return Kafka(**(right | changes))

    def certificate(self, **changes: Any) -> Kafka:
        """SSL with a client certificate."""
        right = {
            "bootstrap": f"{LOOPBACK}:{self.certificate_port}",
            "security_protocol": "SSL",
            "ssl_ca_file": self.certificates.pem("authority"),
            "ssl_cert_file": self.certificates.pem("client"),
            "ssl_key_file": self.certificates.key("client"),
        }
        return Kafka(**(right | changes))


@contextlib.contextmanager
def secured_broker(directory: Path) -> Iterator[Secured]:
    """Start it; skips where there is no Kafka or no openssl."""
    home = require(KAFKA, "the stand-in knows neither SASL nor TLS")
    secured = Secured(*(free_port(0, "port") for _ in range(3)), make_certificates(directory))
    properties = directory / "server.properties"
    properties.write_text(_properties(directory, secured), encoding="utf-8")
    java_home = os.environ.get("JAVA_HOME")
    java = [f"{java_home}/bin/java" if java_home else "java", "-Xmx384m", "-cp", f"{home}/libs/*"]
    scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
    tool = [*java, "kafka.tools.StorageTool", "format", "-t", "c2VjdXJlZC1icm9rZXIwMA", "-c", str(properties)]
    subprocess.run([*tool, "--add-scram", scram], capture_output=True, check=True, timeout=READY_S)
    log = directory / "broker.log"
    process = start_guarded("broker", [*java, "kafka.Kafka", str(properties)], log=log, grace_s=20.0)
    try:
        ports = (secured.scram_port, secured.certificate_port)
        wait_until_ready(process, lambda: all(is_listening(f"{LOOPBACK}:{port}") for port in ports), READY_S)
        yield secured
    finally:
        process.stop()


def _properties(directory: Path, secured: Secured) -> str:
    """The embedded broker's, with listeners that ask who is there."""
    certificates, shown = secured.certificates, directory / "shown.pem"
    shown.write_bytes(certificates.key("server").read_bytes() + certificates.pem("server").read_bytes())
    embedded = server_properties(directory / "data", secured.own_port, free_port(0, "port"), Kafka().max_message_bytes)
    properties = dict(line.split("=", 1) for line in embedded.splitlines())
    ports = {"PLAINTEXT": secured.own_port, "SASL_SSL": secured.scram_port, "SSL": secured.certificate_port}
    listeners = ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())
    controller = properties["listeners"].split(",")[1]
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties |= {
        "listeners": f"{listeners},{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": ",".join(f"{name}:{name}" for name in ports) + ",CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(shown),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.pem("authority")),
    }
    return "\n".join(f"{name}={value}" for name, value in properties.items())
