"""Compression switched on for one model: in the order in which a prefill meets the files.

``attach`` checks (``checks``, ``placement``), puts ``hooks`` on a model and returns the handle.
``request`` inspects each call: is it a prefill with pictures, and a legal one?  ``encoders``
notes how pictures are encoded, ``prompts`` which text is the prompt.  ``call`` runs that prefill
layer by layer and fits what each layer is given (``arguments``); ``prefill`` is its state, which
runs a stage and keeps a record of it (``records``).  ``results`` tells of it afterwards.
``compiling`` keeps hooks out of compiled graphs; ``pictures`` shows what a model saw.
"""
