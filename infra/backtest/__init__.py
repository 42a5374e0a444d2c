"""Backtests of the candidate generator and of the ranker, from a log to a directory with a report. Behind `nextwatch
backtest`; everything that decides is in `models.evaluation`. Open run.py first."""
