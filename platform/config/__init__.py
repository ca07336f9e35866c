"""What a run is: recipes, their sections, and overrides from the command line."""
