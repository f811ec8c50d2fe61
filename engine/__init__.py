"""The training engine: nobody above it is imported here."""

import logging
import os

# Without this, every start would remark that torchvision is absent, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# peft loads bitsandbytes where it is installed, which remarks on some CPUs that an optional kernel is absent.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
