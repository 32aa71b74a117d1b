"""`svcctl doctor`: what is looked at on this machine and asked of the services, and what the answers mean."""
