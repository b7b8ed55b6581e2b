"""What a fork may delete: each folder with its tests, configs and docs; `child.py` serves two of them. The core never
imports from here.
"""
