"""Where training clips come from: generated worlds and readers of existing videos."""
