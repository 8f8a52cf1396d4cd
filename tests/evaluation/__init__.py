"""Evaluations: rows, statistics, pages."""
