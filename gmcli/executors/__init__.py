"""Spread videos over worker processes."""
