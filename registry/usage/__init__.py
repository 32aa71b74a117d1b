"""Tokens for people: what routers told, by the hour and by the day (docs/usage.md)."""
