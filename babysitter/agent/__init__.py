"""The node agent: creates, shows, stops and removes the replicas of its node. They run on while it is down."""
