"""Benchmarks that compare side by side: stages, prefills, decoding, growth."""
