"""Known teachers: their licences, sizes and costs, and the models that cannot be inverted."""
