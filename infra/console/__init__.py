"""The console: pages of the gateway for people, rendered here, without scripts and without anything from elsewhere.

Imported by the command line only. Open pages.py first: which pages there are; a page's words are in templates/.
"""
