"""What a registry takes. Who writes to it keeps to the same numbers: no limit is met by data that we make ourselves."""

BODY_LIMIT_BYTES = 512 << 10
"""Of a registration or a heartbeat."""
METADATA_LIMIT_BYTES = 8192
"""Of a record's metadata, without its models."""
MODELS_LIMIT_BYTES = 384 << 10
"""Of `models` and `models_list` in the metadata together; babysitters of the old kind write both in full."""
