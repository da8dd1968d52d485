"""A web page that talks with agents."""
