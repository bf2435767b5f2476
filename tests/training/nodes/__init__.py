"""Fine-tunes on several nodes, and the meeting of their workers."""
