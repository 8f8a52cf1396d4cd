"""Cache layers that hold fewer entries than the tokens they stand for.

``compressed`` has what all of them share: which logical token each entry is.  ``layerwise`` is what
a whole cache is asked for, one layer after the other: crops, copies of samples.  ``layers`` makes
one of each kind of layer that transformers has, ``states`` of those that hold a state.  ``sizes``
tells what a layer holds, in bytes and entries, without asking the device.
"""
