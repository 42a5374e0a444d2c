"""Settings, metrics, the command line, embedded services, the simulated world."""
