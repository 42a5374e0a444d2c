"""Third parties that are patched, or touched where they are private: each has a folder with a file `patches.py`, and
`patching.py` says which versions were checked. Whoever uses such a client may import its patches.
"""
