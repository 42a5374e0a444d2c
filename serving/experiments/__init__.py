"""The experiment that runs, as a server serves it: whose settings, and rankers of other releases beside the live one's.

Imported by serving.worker. Open experiment_view.py first, then rivals.py.
"""
