"""One teacher replica on several GPUs of a node: a process per GPU."""
