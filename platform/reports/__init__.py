"""Pages and curves about finished runs."""
