"""Tests of what is written to disk for training."""
