"""Ground of tests and benchmarks: running systems, traffic, outages, checks of what was promised.

Imported by tests only. Begin with `system.py` (processes and their health) and `service.py` (a whole system).
"""
