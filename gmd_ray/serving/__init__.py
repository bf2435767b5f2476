"""Pages over HTTP: the server that `serve` and `study serve` share, and the site of one run."""
