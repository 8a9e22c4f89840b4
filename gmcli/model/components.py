"""Stands in until everybody has followed the components to gmcli.components."""

from gmcli.components import *  # noqa: F403
