"""Where records outlive a registry: one module per kind of store."""
