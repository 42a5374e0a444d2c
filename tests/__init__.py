"""The tests: `unit` mirrors the packages, `system` runs whole systems, `harness` is what both stand on.

`test_architecture.py` holds the order of the rooms. Shared fixtures are in `conftest.py`.
"""
