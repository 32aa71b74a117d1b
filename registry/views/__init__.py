"""What others are shown of the catalogue: records, changes, metrics, targets."""
