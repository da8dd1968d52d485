"""Models whose graph libllama builds and runs, over sessions in guests' memories.

libllama knows many more architectures than `model/architectures` has. For those it loads the file,
writes the graph down and computes it; a session's KV cache, recurrent state and logits lie in the
guest's linear memory all the same, as those of models with graphs of ours do.
"""
