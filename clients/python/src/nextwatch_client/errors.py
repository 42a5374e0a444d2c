"""Errors that a caller may meet; brokers that do not answer at the start raise kafka.errors.KafkaError.

OptionsError (ValueError)      an option cannot be used: the text names it
TopicMissing (LookupError)     the request or the reply topic does not exist
RequestFailed (RuntimeError)   not sent, reply unreadable, client closed: the text says which
└── RequestTimeout (TimeoutError)   no reply in time: the text says whether the brokers took the request
"""

from __future__ import annotations


class OptionsError(ValueError):
    """Options have values that cannot be used; the text begins with their names, and `why` is the rest of it."""

    def __init__(self, options: tuple[str, ...], why: str) -> None:
        super().__init__(", ".join(options) + why)
        self.options, self.why = options, why


class TopicMissing(LookupError):
    """A topic does not exist; the text names it and the command that makes it."""


class RequestFailed(RuntimeError):
    """A request has no reply: it could not be sent, its reply could not be read, or (RequestTimeout) none came."""


class RequestTimeout(RequestFailed, TimeoutError):
    """No reply came in time."""
