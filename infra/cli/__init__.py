"""The command line, `nextwatch`: a file for each kind of command, which parses, calls and prints.

Nobody imports from here. `main.py` puts the commands together; what they do is in `infra/operate`.
"""
