"""Deployments: what should run, and what the fleet is told to do about it (docs/adr/0013)."""
