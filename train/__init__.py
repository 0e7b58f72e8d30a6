"""Tuning with label smoothing."""
