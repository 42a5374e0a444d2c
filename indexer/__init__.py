"""Kafka to Milvus: one collection per release, kept fresh. Only this package and infra/local import pymilvus.

`Index` (collection.py) is for servers and operators too; everything else is the indexer's own process.
Open process.py first: the loop; then rollout.py: what the loop carries out.
"""
