"""The benchmarks: a folder each, with one small YAML a language."""
