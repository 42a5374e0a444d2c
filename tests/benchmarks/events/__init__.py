"""From an event to what it changes: freshness, throughput of the stream workers, time of a request."""
