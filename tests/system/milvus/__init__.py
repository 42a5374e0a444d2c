"""A Milvus that is not ours alone: behind TLS and a token. Open test_secured_milvus.py."""
