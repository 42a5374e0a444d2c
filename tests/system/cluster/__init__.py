"""Systems on three brokers of which one is lost."""
