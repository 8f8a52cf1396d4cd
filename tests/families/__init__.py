"""Tiny models of every family, their inputs and what is known of them independently."""
