"""Topics read to their end and written to disk as what training takes. For the commands; open archive.py first."""
