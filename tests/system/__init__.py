"""Tests of whole systems: every process, a real broker, a real Milvus, over TCP.

Begin with `test_whole_system.py`; who is killed when is in `test_crash.py` and tests/harness/crash.
"""
