"""Where the rooms meet: the service record on the wire, and the client of the registry."""
