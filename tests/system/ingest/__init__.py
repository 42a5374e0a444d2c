"""A team's own topics on a real broker, and a schema registry over HTTP. Open test_ingest.py."""
