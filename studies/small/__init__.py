"""The claims of the paper at small scale, see README.md."""
