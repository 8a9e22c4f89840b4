"""Measure gmcli against the published schedule, against the machine, and over its own sizes."""
