"""The console as a person sees it: a small system that has one, and Chromium before it. Begin with `running.py`."""
