"""Three Apache Kafka brokers and a system on them: begin with `brokers.py`, then `faults.py` and `system.py`."""
