"""Pages about a curation."""
