"""The parts of `bench/router.py`: two C programs, the peers' configurations, and what is done with the figures."""
