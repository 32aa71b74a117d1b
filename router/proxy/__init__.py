"""The data plane: both legs of a proxied request as protocols on uvloop; bytes pass through as they come."""
