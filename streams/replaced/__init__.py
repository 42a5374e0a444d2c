"""A topic that was deleted and made again: its old offsets are taken out of all that remembers them. Open
take_out_offsets.py; who notices is streams/kafka/topic_ids.py."""
