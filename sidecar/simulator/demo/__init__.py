"""The demo: the whole story of a request, played against the embedded servers."""
