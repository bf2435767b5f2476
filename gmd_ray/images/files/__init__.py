"""Image files: their formats, opening, decoding, color management and encoding."""
