"""A SIMULATED world of people and videos, and the demo that plays on it.

Imported by `infra/cli`, tests and benchmarks. Begin with `world.py`; the demo's story is in `demo.py`.
"""
