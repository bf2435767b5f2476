"""What a projection costs: FLOPs, memory and time, computed from the model dimensions."""
