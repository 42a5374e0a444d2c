"""The experiment that runs, as a server serves it: whose settings, and other releases beside the live one.

Imported by serving.worker. Open experiment_view.py first, then rivals.py, then
rival_candidates.py.
"""
