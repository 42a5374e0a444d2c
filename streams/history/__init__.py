"""The history worker: watches, searches, signals and impressions become users' histories and training examples. Serving
imports watched_filter and signals, the join and trending the rule of a completed watch; open rules.py first."""
