"""A fleet that only speaks: the parts of `bench/fleet.py`."""
