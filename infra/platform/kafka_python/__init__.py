"""What we use of kafka-python beyond its public interface. For everybody who makes a consumer or producer of it; open
patches.py."""
