"""Backtests: queries cut in time, baselines, metrics with their errors, drift. Stands on `logs`; the models that are
judged stand above it. Open backtest.py first."""
