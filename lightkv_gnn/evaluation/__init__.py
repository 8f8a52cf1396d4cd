"""Evidence: what compression costs in answers, on models small enough to train here.

Suites: ``suite`` says what one is, ``suites`` names all: ``tiny_suite``, ``photo_suite``, ``cued``,
``rectangles``; their models come from ``training`` and ``listening``; ``redundancy`` is that of
their pictures.  A run: ``runner`` has methods and ``ablations`` ``asking``, leaves ``rows`` in a
``store``, tells what is ``hard``, and shares out over ``shards``.  A page: ``statistics`` and
``pooling`` of seeds, then ``figures``, that of ``pareto``, ``formats`` and the ``report``.
"""
