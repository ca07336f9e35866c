"""Published data sets, each with its configuration and the reader of its manifests."""
