"""Connections that the registry opens, to addresses only that may be registered."""
