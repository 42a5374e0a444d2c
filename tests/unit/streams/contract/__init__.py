"""Tests of what is said of the topics to those outside."""
