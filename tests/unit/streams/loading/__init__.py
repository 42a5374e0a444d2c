"""Tests of what a log holds for the streams."""
