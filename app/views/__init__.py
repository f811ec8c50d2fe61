"""Pages: one file a page, run from the top by Streamlit at each visit. What can be tested lies beneath them."""
