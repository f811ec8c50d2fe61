"""Parts of pages: each draws one thing, from what it is given or from the store."""
