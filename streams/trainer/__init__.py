"""The trainer worker: training examples in, touched item rows out. Nobody imports it but the command line.

Open worker.py first: the order of effects; then progress.py: which rows wait, and why a crash loses nothing; then
writer_epoch.py: why only one trainer's rows count.
"""
