"""One compression step, with no model in sight: tokens and guidance in, fewer tokens out.

In the order in which a stage meets them: ``guidance`` weighs vision tokens by what the prompt asks;
``compressor`` runs the step, over graphs of ``lightkv_graphs``; ``merges`` holds who joined whom;
``messages`` makes survivors of them, and ``scatter`` adds over edges, in plain torch, torch-scatter
or Triton (``kernels``); ``ranks`` keeps processes that share heads in step.  ``official`` computes
what the authors' released module does, from the same parts.
"""
