"""Calibration for multilingual language models, next to lm-evaluation-harness."""

__version__ = "0.1.0"
