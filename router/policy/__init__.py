"""PURE. Who gets a request: each module one rule, `choose.py` the order in which they speak."""
