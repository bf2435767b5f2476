"""The cost of a projection in FLOPs and memory, computed from config files."""
