"""The workers that read events: what travels (messages.py, topics.py) and what several of them share stands here, what
they need of Kafka in kafka/, and each worker in a room of its own. Imported by everybody but infra.platform and models;
open messages.py first."""
