"""Errors of the index, for those who only want to catch them (no pymilvus is imported by importing this)."""

from __future__ import annotations


class IndexFailure(RuntimeError):
    """Any failure of a call to the index; the text says which call and what Milvus answered."""


class IndexUnavailable(IndexFailure):
    """Milvus does not answer, or not in time, or is overloaded: the same call may work later."""


class IndexMissing(IndexFailure):
    """There is no collection of this version."""


class IndexRefused(IndexFailure):
    """Milvus will never accept this call: a wrong token, a wrong parameter."""


class FilterRefused(IndexRefused):
    """Milvus does not understand the filter of this search; without it, it answers."""
