"""Ray Tune over recipes: the space of a sweep, its trials, its driver."""
