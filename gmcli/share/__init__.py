"""Carry the data that ships with gmcli: configurations, engine recipes, the demo checkpoint."""
