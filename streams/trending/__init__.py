"""The trending worker: what is watched most now, in all and by region. Serving reads its topic with rules.py, which is
also what to open first."""
