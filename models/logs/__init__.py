"""Logs from files to what is learnt from: checked, sorted on disk, cut into histories. Stands on `catalogue`.
Open log.py for the columns, then training_set.py."""
