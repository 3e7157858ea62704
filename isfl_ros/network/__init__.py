"""The fusion networks: configuration, parts, checkpoints, inference form."""
