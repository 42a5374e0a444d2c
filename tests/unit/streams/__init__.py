"""Tests of the workers that read events; mirrors streams/. What several need is in conftest.py and memory_log.py."""
