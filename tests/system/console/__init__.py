"""The console in a real browser, in front of a running system."""
