"""What may be set, and what it may be set to. Nothing here imports torch."""
