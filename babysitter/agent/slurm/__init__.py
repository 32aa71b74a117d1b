"""Replicas as jobs of a Slurm cluster (docs/slurm.md, docs/adr/0014)."""
