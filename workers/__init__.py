"""Workers: a doorbell (Celery), a claim in the database, one engine process at a time, and its words written down."""
