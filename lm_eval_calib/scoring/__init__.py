"""Fast scoring of log-likelihood requests."""
