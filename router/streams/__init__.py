"""Streams that outlive their replica: what was said, how another replica goes on from there, and second copies before that."""
