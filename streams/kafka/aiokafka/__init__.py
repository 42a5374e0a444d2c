"""The parts of aiokafka, Faust's own client, that we use beyond its public interface. For streams.kafka only; open
patches.py."""
