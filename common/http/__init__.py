"""HTTP manners shared by every service: serving and draining, error answers, and the one client session."""
