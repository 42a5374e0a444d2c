"""The ranker (paper section 4): features, network, training, the model as served. Stands on `retrieval`, whose scores
it reads. Open features.py first, then ranker.py."""
