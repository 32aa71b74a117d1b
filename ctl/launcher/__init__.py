"""`svcctl up` and `down`: the processes of one node, started detached, found again, and ended."""
