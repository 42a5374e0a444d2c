"""The only room that knows Faust and aiokafka from the inside: apps, intake, outbox, recovery, followed topics. Imports
the top of streams only; every room may import it. Open faust_app.py first."""
