"""The training engine: nobody above it is imported here."""

import os

# Without this, every start would remark that torchvision is absent, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
