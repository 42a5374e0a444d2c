"""Erasing users: what must be told, what a worker deletes, what the topics still hold. For the workers that keep users'
states and for the commands; open erasure_worker.py first."""
