"""Serving alone: requests, precision, memory, and the mirror against the index."""
