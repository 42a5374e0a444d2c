"""Trainers that learn two releases at once. Open test_rival.py."""
