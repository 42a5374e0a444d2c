"""Tests of the history worker."""
