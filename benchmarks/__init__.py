"""Benchmarks: implicit layers solved and differentiated by this package, by its peers, and by hand. See README.md."""
