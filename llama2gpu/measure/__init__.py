"""Measuring: memory, the machine's own limits, and whole models."""
