"""The pair store: one row for every input image of a run, in Parquet files on any file system."""
