"""Reports: saved runs in, tables, figures and HTML out. Reads only files, so it needs no W&B account."""
