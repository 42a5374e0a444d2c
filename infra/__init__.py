"""Everything around the recommender itself: the ground that all stand on, and the commands on top.

`platform` is the ground; `local`, `operate`, `backtest` and `simulation` stand above `serving`; `cli` is on top.
Begin with `infra/cli/main.py`.
"""
