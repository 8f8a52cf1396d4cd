"""Columns of a batch's input and output."""

import pyarrow as pa

ASKED = ("id", "image", "prompt")
"""That every row has, of text; others are carried along."""

ANSWERED = pa.schema(
    {
        "answer": pa.string(),
        "vision_tokens": pa.int64(),
        "vision_tokens_left": pa.int64(),
        "retention": pa.float64(),
        "kv_bytes": pa.int64(),
        "kv_bytes_full": pa.int64(),
        "seconds": pa.float64(),
    }
)
"""That are added to them: fields of :class:`lightkv_gnn.batch.Outcome`."""
