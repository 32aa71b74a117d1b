"""Registry: soft state with leases; tells routers what there is, and is never in the data path."""
