"""The Faust side: user histories, trending, the incremental trainer; and what travels (messages, topics)."""
