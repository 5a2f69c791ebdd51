"""Virtual worlds: a folder with one platform file per platform, written by hand or generated."""
