"""What compression will save, told before anything runs.

``prefill`` plans one prefill of a model from its inputs, layer by layer; ``model`` plans from a
published configuration alone, without weights: schedule, cache, operations and memory.
"""
