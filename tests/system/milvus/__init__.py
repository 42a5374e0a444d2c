"""A Milvus behind TLS and a token, and one at the end of a slow line. Open test_secured_milvus.py."""
