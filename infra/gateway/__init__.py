"""The HTTP gateway: one more client of the topics, for whoever does not speak Kafka (`nextwatch gateway`).

Imported by the command line and the console only. Open routes.py first: what it answers; door.py is what every request
passes before; process.py puts it together and serves it.
"""
