"""The workbench: pages, the gallery, and the `palate` command. It reads the store and never loads a model."""
