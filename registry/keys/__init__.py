"""API keys that are kept in the store, and what of their limits is left for the fleet."""
