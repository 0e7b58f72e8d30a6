"""Metrics of calibration as pure NumPy functions."""
