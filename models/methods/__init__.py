"""The training methods by name: compositions of objectives, each with its configuration."""
