"""Pictures of any rows and columns, seen by a tiny Qwen2.5-VL: do geometry and positions matter?"""




