"""Retrieval judged on logs: against baselines, without its parts, live."""
