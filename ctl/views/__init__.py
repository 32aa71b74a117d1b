"""Tables and lines from the services' answers; nothing here touches network, clock or terminal."""
