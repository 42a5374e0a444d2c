"""The command line: `nextwatch`."""
