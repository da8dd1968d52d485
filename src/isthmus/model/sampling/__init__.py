"""Which token comes next: candidates, grammars, and the draw."""
