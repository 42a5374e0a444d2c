"""`nextwatch experiment` and `nextwatch evaluate-policy`: started and stopped, read from the topics, judged.

Imported by `infra/cli` and tests. Open report.py first: what is said of an experiment, and when it may be."""
