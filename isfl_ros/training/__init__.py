"""Training: data, interventions, losses, loop, configuration."""
