"""What we use of aiokafka, Faust's own client, beyond its public interface. For streams.kafka only; open patches.py."""
