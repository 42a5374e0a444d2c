"""Actions of an operator: train, replay, roll back, rebuild, forget, look at status. Usable as a library.

Imported by `infra/simulation` and `infra/cli`. A file for each action; begin with `releases.py` or `training.py`.
"""
