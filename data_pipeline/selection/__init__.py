"""The clips that a curation accepted, and their version of the cache."""
