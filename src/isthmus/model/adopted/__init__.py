"""Models whose graph libllama builds and runs, over sessions in guests' memories.

libllama knows many more architectures than `model/architectures` has. For those it loads the file,
writes the graph down and computes it; a session's KV cache, recurrent state and logits lie in the
guest's linear memory all the same, as its own models' do.
"""

from isthmus.model.adopted.context import Context, Contexts
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.adopted.library_model import LibraryModel

__all__ = ["AdoptedLayout", "Context", "Contexts", "LibraryModel"]
