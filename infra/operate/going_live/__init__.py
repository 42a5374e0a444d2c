"""The gate before going live: a new release is judged beside the live one, and announced unless it is worse.

Imported by `infra/operate/retrain` and `infra/cli`; the verdict itself is models/evaluation/gate.py. Open gate.py
first."""
