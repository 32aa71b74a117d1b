"""Who else there is, by what heartbeats and watches say: replicas, nodes' agents, routers. Soft state."""
