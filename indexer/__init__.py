"""Kafka to Milvus, one collection per version; the only package that imports pymilvus."""
