"""What stands between us and a Milvus: a gate that asks who is there, a line that is slow or cut. Open gate.py."""
