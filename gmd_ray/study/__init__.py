"""A human study: which of two methods' pictures do people prefer? Pairs, pages for raters, and the result."""
