"""Experiments on viewers, where the truth is known: what they say, and how many viewers they need for it."""
