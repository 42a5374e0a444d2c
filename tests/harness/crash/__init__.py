"""The crash run: load, a killer, and a verdict from the topics alone. Begin with `run.py`."""
