"""A team's own topics as ours: their fields, their formats. What a record becomes is pure (mapping.py, paths.py,
values.py); who reads and writes is worker.py. Imports the top of streams and streams.kafka; open mapping.py first."""
