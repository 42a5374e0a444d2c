"""Endurance: crashes, outages, bad messages, long runs. The short forms are in tests/system."""
