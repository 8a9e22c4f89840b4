"""Turn the layouts of published datasets into manifests."""
