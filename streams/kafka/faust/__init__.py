"""What we use of Faust beyond its public interface. For streams.kafka only; open patches.py."""
