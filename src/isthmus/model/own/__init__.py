"""Models whose graphs Isthmus writes down: their sessions, and what runs them."""
