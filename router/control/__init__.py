"""The control plane: what operators and model lists see. Served on a private socket, reached through the router's port."""
