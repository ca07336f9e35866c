"""Several methods from one teacher, trained and judged alike."""
