"""Tests of going on with topics that were made again."""
