"""The parts of kafka-python that we use beyond its public interface. For everybody who makes a consumer or producer of
it; open patches.py."""
