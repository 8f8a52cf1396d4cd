"""What a schedule costs: tokens, bytes of keys and values, operations.

``schedule`` has stages and finds them for a retention; ``plan`` knows their sizes beforehand;
``ledger`` is the bill, planned and observed, layer by layer.
"""
