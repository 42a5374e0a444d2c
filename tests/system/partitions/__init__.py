"""A system whose partitions are raised. Open test_raise.py."""
