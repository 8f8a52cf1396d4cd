"""What a shorter layer's attention is given.

``backends`` tells implementations apart by the masks they take; ``masks`` and ``block_masks`` read
a compressed layer's mask off the one it was given; ``positions`` does the same for rotary tables;
``capture`` records queries and keys where a stage needs them.
"""
