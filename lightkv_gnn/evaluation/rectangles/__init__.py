"""Pictures of any rows and columns, seen by a tiny Qwen2.5-VL: do geometry and positions matter?"""

from lightkv_gnn.evaluation.rectangles.suite import Rectangles

__all__ = ["Rectangles"]
