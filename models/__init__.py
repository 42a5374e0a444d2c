"""The mathematics: user tower, item tables, ranker, losses, training, evaluation, bundles. No Kafka, Milvus, Faust,
clock or settings; imported by all the rest. The rooms in their order: catalogue, logs, evaluation, retrieval, ranking,
release."""
