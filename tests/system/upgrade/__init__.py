"""From the last release to this checkout, one process after the other, under load."""
