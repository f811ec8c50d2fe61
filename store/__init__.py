"""The database and every query: runs, jobs and their leases, results, prompt sets, and the files rows name."""
