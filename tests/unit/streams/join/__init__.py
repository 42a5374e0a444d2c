"""Tests of the join worker."""
