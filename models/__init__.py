"""The mathematics: user tower, item tables, ranker, losses, training, evaluation, bundles.

No Kafka, no Milvus, no clock.
"""
