"""Reads messages of our own topics for the views: what cannot be read is counted and passed over."""

from __future__ import annotations

from typing import Any

import structlog

from infra.platform import metrics
from streams.messages import Refused, decode

log = structlog.get_logger(__name__)


def read(topic: str, kind: Any, value: bytes) -> Any:
    """A message of our own topics; what cannot be read is counted and passed over, the table keeps what it had."""
    try:
        return decode(kind, value, max_bytes=len(value))
    except Refused as refused:
        refuse(topic, refused)
        return None


def refuse(topic: str, refused: Refused) -> None:
    """Count a record that is passed over."""
    metrics.REJECTED.labels(topic, refused.code).inc()
    log.warning("record passed over", topic=topic, code=refused.code, reason=str(refused))
