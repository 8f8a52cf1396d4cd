"""Benchmarks that compare side by side: stages, prefills, decoding, serving, growth.

``parts`` lists what is measured, ``every`` all of it after a ``check``; ``cases`` and ``shapes``
are what is run, ``subjects`` who runs it.  ``serving`` compares engines of vLLM, in a process of
their own, ``engines``.  ``stage``, ``prefill`` and ``growth`` compare;
``measure`` takes time and memory, and ``table`` prints.
"""
