"""The command line: ``cli`` finds a command, ``options`` are those that several share.

One file per command, named like it.  What is more than options and printing is beside it:
``comparison`` for ``demo``, ``running`` for ``run``, ``diagnosis`` for ``doctor``.
"""
