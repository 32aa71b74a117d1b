"""Asks every instance whether it is well."""
