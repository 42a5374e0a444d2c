"""Tests of the trending worker."""
