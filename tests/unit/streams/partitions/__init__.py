"""Tests of raised partitions."""
