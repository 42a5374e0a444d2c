"""The ground: settings, metrics, health pages, guarded processes, Kafka connections. Imports nothing else of ours.

Everybody but `models` and the client may import it. Begin with `settings.py`; all metrics are in `metrics.py`.
"""
