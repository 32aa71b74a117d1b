"""A real little OpenAI server with knobs for every way a server can misbehave: `python -m babysitter.mock`."""
