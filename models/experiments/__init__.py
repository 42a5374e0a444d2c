"""Experiments on viewers, as mathematics: who is in which variant, what may be concluded and when, how two orders are
interleaved, what another way to draw would have brought. Imported by streams, serving, infra and tests; open
confidence.py first."""
