"""Benchmarks that compare side by side: stages, prefills, decoding, growth.

``parts`` lists what is measured, ``every`` all of it after a ``check``; ``cases`` and ``shapes``
are what is run, ``subjects`` who runs it.  ``stage``, ``prefill`` and ``growth`` compare;
``measure`` takes time and memory, and ``table`` prints.
"""
