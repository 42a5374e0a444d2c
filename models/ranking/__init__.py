"""The ranker (paper section 4): features, network, training, the model as served. Stands on `retrieval`, whose scores
it reads. Open feature.py and query_features.py first, then ranker.py."""
