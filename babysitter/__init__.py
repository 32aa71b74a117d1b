"""One inference server, owned: started, watched, restarted, reported to the registry, stopped."""
