"""The parts of Faust that we use beyond its public interface. For streams.kafka only; open patches.py."""
