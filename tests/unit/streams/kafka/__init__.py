"""Tests of what the workers need of Kafka, the clients' patches included."""
