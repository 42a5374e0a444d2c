"""Systems whose processes share no disk: each has a data directory of its own, as on another machine."""
