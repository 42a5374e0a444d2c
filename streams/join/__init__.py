"""The join worker: impressions meet what became of them, as ranking examples and item statistics. Imported by nobody
else; open rules.py first."""
