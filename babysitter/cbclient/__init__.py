"""Replicas of the release server: a client environment installed from a private index, and the server it provides."""
