"""The loop of a serving process over Kafka: requests in, replies and impressions out, offsets committed behind them.

Imported by the command line only. Open worker.py first.
"""
