"""The stages of an answer, in their order; no Kafka client, no thread but those that search.

Imported by serving.worker. Open pipeline.py first: it calls all the others.
"""
