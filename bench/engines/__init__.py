"""The parts of `bench/engines.py`."""
