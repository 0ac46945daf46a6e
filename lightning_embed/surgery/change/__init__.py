"""What changes a model: the steps of a plan, how they are carried out and taken back, embeddings."""
