"""One file for every layout that people's data come in; each turns a raw item into a record."""
