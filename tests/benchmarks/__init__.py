"""What is measured: `python -m tests.benchmarks [NAME...] [--quick] [--json FILE]`; one alone: `tests.benchmarks.NAME`.

Each prints a table with the machine and the baseline of the same run, and asserts nothing about time: a bar that is
missed is printed and written as missed, and the exit code stays 0 (1 with `--strict`).
"""
