"""A model is loaded, and asked about pictures, compressed or not.

``loading`` finds a model and its processor; ``prompts`` makes of questions and pictures what the
model takes, in its chat format; ``answers`` has it answer, a question at a time or a batch;
``scores`` tells how likely given answers are.
"""
