"""The command line, `nextwatch`: one file per kind of command; `main.py` puts them together."""
