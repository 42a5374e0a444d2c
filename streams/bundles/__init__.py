"""Bundles that are not on this disk: sent to object storage before a release is announced, fetched from there by
whoever opens one. Open source.py first."""
