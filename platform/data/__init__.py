"""The data of a job: from the curated cache to the batches of each rank."""
