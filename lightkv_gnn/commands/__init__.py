"""The command line: ``cli`` finds a command, ``options`` are those that several share.

A file for each: ``demo``, ``run``, ``batch``, ``serve``, ``plan``, ``view``, ``eval``, ``report``,
``bench``, ``doctor``.  What is more than options and printing is beside it: ``comparison`` and
``bundled`` for the demo, ``running`` for run, ``diagnosis`` for the doctor.  Nothing imports this
room.
"""
