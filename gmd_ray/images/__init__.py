"""Images: listing, decoding, naming, pairing, degrading and tiling them."""
