"""Access to the brokers, tried once before a command begins, because its clients do not tell.

kafka-python says "unable to bootstrap" after half a minute, whatever the reason, and Faust tries again for ever. So one
connection is made here as they would make it, and what it meets is put into the words of our settings. Only a refusal
is an error: brokers that are away or slow are left to the clients, which wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time

from aiokafka import errors
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from infra.platform.kafka_clients import aiokafka_options
from infra.platform.settings import Kafka, SettingsError, variable_of

ANSWER_S = 5.0  # for one broker to accept a connection and say who it is
HANGS_UP = "it hangs up"
HANG_UPS = 3  # in a row: a broker that starts or stops does it too
REST_S = 0.5
TLS_ALERT = 0x15030000  # how a TLS server's complaint begins, read as the length of a Kafka message
ANY_TLS = 0xFFFF0000  # whichever version


class KafkaRefused(RuntimeError):
    """A broker answers and does not let us in; the text names the settings that it is about."""


def require_access(kafka: Kafka) -> None:
    """Return when a broker lets us in, or when none answers at all. Raises KafkaRefused, and SettingsError for a login
    that is not whole and a certificate file that cannot be used."""
    _check_login(kafka)
    options = aiokafka_options(kafka)
    del options["bootstrap_servers"]
    logger = logging.getLogger("aiokafka.conn")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it would say is said by us
    loop = asyncio.new_event_loop()  # not the thread's own: Faust makes that
    try:
        for address in kafka.bootstrap.split(","):
            if _is_open(loop, kafka, address.strip(), options):
                return
    finally:
        loop.close()
        logger.setLevel(level)


def _check_login(kafka: Kafka) -> None:
    protocol = f"kafka.security_protocol is {kafka.security_protocol}"
    needed = {"kafka.username": kafka.username, "kafka.password": kafka.password.get_secret_value()}
    missing = [f"{name} ({variable_of(name)})" for name, value in needed.items() if not value]
    if kafka.security_protocol.startswith("SASL") and missing:
        raise SettingsError(f"{protocol}, and {' and '.join(missing)} is not set")
    if kafka.ssl_key_file and not kafka.ssl_cert_file:
        raise SettingsError("kafka.ssl_key_file is set, and kafka.ssl_cert_file is not")


def _is_open(loop: asyncio.AbstractEventLoop, kafka: Kafka, address: str, options: dict[str, object]) -> bool:
    """True when this broker lets us in, False when it does not answer. Raises KafkaRefused."""
    for left in reversed(range(HANG_UPS)):
        try:
            loop.run_until_complete(_connect(address, options))
            return True
        except Exception as error:
            reason = why_refused(error, kafka)
            if reason is None:
                return False
            if reason.startswith(HANGS_UP) and left:
                time.sleep(REST_S)
            else:
                raise KafkaRefused(f"Kafka at {address} does not let us in: {reason}") from None
    return False


async def _connect(address: str, options: dict[str, object]) -> None:
    host, _, port = address.rpartition(":")
    connection = await create_conn(host.strip("[]"), int(port), request_timeout_ms=ANSWER_S * 1000, **options)
    try:
        await connection.send(MetadataRequest([]))  # a greeting is answered even where a login is missing
    finally:
        await connection.close()


def why_refused(error: BaseException, kafka: Kafka) -> str | None:
    """The settings to be mended, in words; None for an error that is no refusal."""
    cause = error.__cause__ or error
    speaks = f"is kafka.security_protocol ({kafka.security_protocol}) what this port speaks?"
    match cause:
        case ssl.SSLError():
            return _why_no_tls(cause, kafka, speaks)
        case errors.SaslAuthenticationFailed():
            return f"wrong kafka.username ({kafka.username}) or kafka.password ({variable_of('kafka.password')})"
        case errors.UnsupportedSaslMechanismError():
            return f"it does not offer kafka.sasl_mechanism {kafka.sasl_mechanism}"
        case errors.IllegalSaslStateError():
            return f"it does not want to be asked for a login: {speaks}"
        case asyncio.IncompleteReadError() | errors.KafkaConnectionError() | ConnectionResetError():
            expected = getattr(cause, "expected", 0) or 0
            return f"{'it speaks TLS' if expected & ANY_TLS == TLS_ALERT else HANGS_UP}: {speaks}"
    return None


def _why_no_tls(error: ssl.SSLError, kafka: Kafka, speaks: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message}); {_authority(kafka)}"
    reason = str(error.reason or error).replace("_", " ").lower()
    if "certificate" in reason:
        return f"it does not accept our certificate ({reason}): kafka.ssl_cert_file, kafka.ssl_key_file"
    return f"no TLS connection ({reason}): {speaks}"


def _authority(kafka: Kafka) -> str:
    if kafka.ssl_ca_file is None:
        return "kafka.ssl_ca_file is not set, so only the authorities of this machine are trusted"
    return f"kafka.ssl_ca_file is {kafka.ssl_ca_file}, and kafka.bootstrap must name the host as the certificate does"
