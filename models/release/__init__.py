"""Bundles: a release on disk, and the training that makes one from a log. The top of `models`.
Open training.py first, then bundle.py."""
