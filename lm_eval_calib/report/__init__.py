"""Reports from sample logs."""
