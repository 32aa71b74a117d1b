"""What the registry is about: records, leases, and the one writer; nothing in here knows HTTP."""
