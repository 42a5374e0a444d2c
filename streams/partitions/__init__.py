"""`kafka.partitions` raised: each user's state goes where the user's messages come from now on. Open
raise_partitions.py; what changes in a state is in moved_states.py, who does not start meanwhile in
streams/kafka/partition_counts.py."""
