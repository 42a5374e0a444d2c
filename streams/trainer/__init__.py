"""The trainer worker: training examples in, touched item rows out. Nobody imports it but the command line.

Open app.py first: the order of effects of a batch; then writer_epoch.py: why only one trainer's rows count.
"""
