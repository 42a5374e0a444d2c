"""Answers recommendation requests from one live release.

In the order in which they may import each other: `state` (what a server holds), `experiments` (the one that runs) and
`request` (the stages of an answer), `worker` (the loop over Kafka). Only infra and tests import from here. Open
serving/request/pipeline.py first.
"""
