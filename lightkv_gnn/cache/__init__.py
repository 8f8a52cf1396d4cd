"""Cache layers that hold fewer entries than the tokens they stand for.

``compressed`` has what all of them share: which logical token each entry is.  ``layers`` makes one
of each kind of layer that transformers has.  ``sizes`` tells what a layer holds, in bytes and
entries, without asking the device.
"""
