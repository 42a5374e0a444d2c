"""Tests of single rooms; the folders are those of the product.

What needs a broker or Milvus is marked `service` by itself (tests/conftest.py); `make unit` leaves it out.
"""
