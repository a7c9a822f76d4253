"""Networks that say which objects are in a picture, and where, on any backbone."""
