"""Training data: source pairs and accepted pairs, mixed into batches."""
