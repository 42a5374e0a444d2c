"""The state that a server holds in memory: views of topics, the live release, the mirror, the health of the index.

Imported by serving.experiments, serving.request and serving.worker; imports none of them. Open views.py first, then
release.py.
"""
