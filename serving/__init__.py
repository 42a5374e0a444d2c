"""Answers recommendation requests from one live release."""
