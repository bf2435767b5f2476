"""The record of attempts that the workers of a run share, and the hand-over from one that ends to the next."""
