"""One module per kind of server, each PURE: settings in, a command out."""
