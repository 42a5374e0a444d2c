"""A ranked list made into the list shown: diversity, exploration, and what is learnt from it."""
