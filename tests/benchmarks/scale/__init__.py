"""How cost grows: training by the rows of a log, a server by the items of its release. Begin with train_scale.py."""
