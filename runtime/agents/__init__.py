"""Agents that come with the package, written with the public API alone."""
